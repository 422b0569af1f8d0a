package operator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/strait-net/strait/internal/certificate"
	"github.com/strait-net/strait/internal/kube"
)

// certificateEvery is how often the Secrets are read: a get of each costs less than being told of their changes, and parties read within the hour.
const certificateEvery = time.Minute

// reasonNotWritten is the reason of events about Secrets that another writer was not the cause of.
const reasonNotWritten = "SecretNotWritten"

// certificates keeps the Secrets by which agents, relay and clients know each other. It belongs to the goroutine of run.
type certificates struct {
	client  *kube.Client
	events  *kube.Events
	metrics *metrics
	log     *slog.Logger
	config  certificate.Config
	now     func() time.Time

	said map[certificate.Problem]bool
}

// run follows the Secrets until ctx ends.
func (v *certificates) run(ctx context.Context) error {
	wait := retryMin
	for {
		again, err := v.round(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			wait = retryMin
		default:
			v.metrics.certificateErrors.Inc()
			v.log.Warn("certificates not kept, to be tried again", "err", err)
			again, wait = wait, min(2*wait, retryMax)
		}
		if err := pauseOr(ctx, again, nil, nil); err != nil {
			return err
		}
	}
}

// round reads the Secrets and writes what is to be changed, then tells when to look again. What follows from what it has written is left to the
// next round: it is decided by what the server has.
func (v *certificates) round(ctx context.Context) (again time.Duration, err error) {
	objects := map[string]*corev1.Secret{}
	held := map[string]certificate.Secret{}
	for _, name := range certificate.Names() {
		object, err := v.client.Secret(ctx, v.config.Namespace, name)
		if kube.IsNotFound(err) {
			continue
		}
		if err != nil {
			return 0, err
		}
		_, ours := object.Labels[certificate.Label]
		objects[name], held[name] = object, certificate.Secret{Foreign: !ours, Data: object.Data}
	}
	now := v.now() // after reading: it is as old as this at most
	d, err := certificate.Decide(v.config, held, now)
	if err != nil {
		return 0, err
	}
	v.report(d, objects)
	for _, w := range d.Writes {
		if err := v.write(ctx, w, objects[w.Name]); err != nil {
			return 0, err
		}
	}
	if len(d.Writes) > 0 {
		return pause, nil
	}
	if next := d.Again.Sub(now); !d.Again.IsZero() && next < certificateEvery {
		return max(next, pause), nil
	}
	return certificateEvery, nil
}

// write makes or changes a Secret; object is what was read, nil if there was none.
func (v *certificates) write(ctx context.Context, w certificate.Write, object *corev1.Secret) error {
	send := v.client.UpdateSecret
	if object == nil {
		send = v.client.CreateSecret
		object = &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: v.config.Namespace, Name: w.Name, Labels: certificate.Labels(w.Name)},
			Type:       corev1.SecretTypeTLS,
		}
	}
	if object.Data == nil {
		object.Data = map[string][]byte{}
	}
	maps.Copy(object.Data, w.Data)
	maps.DeleteFunc(object.Data, func(_ string, value []byte) bool { return value == nil })
	if err := send(ctx, object); err != nil {
		if isRace := errors.Is(err, kube.ErrRefused) && !apierrors.IsInvalid(err); !isRace && ctx.Err() == nil {
			v.events.Secret(v.config.Namespace, w.Name, string(object.UID), kube.Warning, reasonNotWritten, err.Error())
		}
		return fmt.Errorf("%s: %w", w.Reason, err)
	}
	severity, level := kube.Normal, slog.LevelInfo
	if w.Reason.Warns() {
		severity, level = kube.Warning, slog.LevelWarn
	}
	v.metrics.certificatesWritten.WithLabelValues(w.Name, string(w.Reason)).Inc()
	v.log.Log(ctx, level, "secret with certificates written", "secret", w.Name, "reason", string(w.Reason), "why", w.Text)
	v.events.Secret(object.Namespace, object.Name, string(object.UID), severity, string(w.Reason), w.Text)
	return nil
}

// report shows when certificates end, and problems: in the metrics while they last, in the log and as events when they are new.
func (v *certificates) report(d certificate.Decision, objects map[string]*corev1.Secret) {
	v.metrics.showCertificates(d)
	now := map[certificate.Problem]bool{}
	for _, p := range d.Problems {
		if now[p] = true; v.said[p] {
			continue
		}
		v.log.Warn("certificates need a person", "secret", p.Name, "reason", string(p.Reason), "problem", p.Text)
		v.events.Secret(v.config.Namespace, p.Name, string(objects[p.Name].UID), kube.Warning, string(p.Reason), p.Text)
	}
	for p := range v.said {
		if !now[p] {
			v.log.Info("certificates repaired", "secret", p.Name, "reason", string(p.Reason))
		}
	}
	v.said = now
}
