// Package suite keeps the modules of Kubernetes' own end-to-end tests pinned; the tests are built from there as they are.
package suite

import _ "k8s.io/kubernetes/test/e2e" // its test binary is built by the lab's "suite" command
