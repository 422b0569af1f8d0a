// Package conformance keeps the modules of the conformance tests of ClusterNetworkPolicy pinned; the tests are built from there as they are.
package conformance

import _ "sigs.k8s.io/network-policy-api/conformance" // its test binary is built by the lab's "suite" command
