package kube

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
)

const secretResource = "secrets"

// Secret returns a Secret as the server has it now; IsNotFound tells that there is none.
func (c *Client) Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	var s corev1.Secret
	if err := c.core.Get().Namespace(namespace).Resource(secretResource).Name(name).Do(ctx).Into(&s); err != nil {
		return nil, fmt.Errorf("get secret %s/%s: %w", namespace, name, err)
	}
	return &s, nil
}

// CreateSecret makes a Secret and fills in what the server adds. It is ErrRefused when there is one of the name.
func (c *Client) CreateSecret(ctx context.Context, s *corev1.Secret) error {
	err := c.core.Post().Namespace(s.Namespace).Resource(secretResource).Body(s).Do(ctx).Into(s)
	return refusal(err, "create secret "+s.Namespace+"/"+s.Name)
}

// UpdateSecret replaces a Secret and fills in what the server adds. It is ErrRefused when the object is not the one that was read any more.
func (c *Client) UpdateSecret(ctx context.Context, s *corev1.Secret) error {
	err := c.core.Put().Namespace(s.Namespace).Resource(secretResource).Name(s.Name).Body(s).Do(ctx).Into(s)
	return refusal(err, "update secret "+s.Namespace+"/"+s.Name)
}
