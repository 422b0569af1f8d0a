package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// ErrLeaseLost is returned by Election.Run when another process holds the Lease, or the Lease could not be renewed in time.
var ErrLeaseLost = errors.New("lease lost")

// Election makes one process the active one among those that name the same Lease. The rules are those of client-go's
// leader election, whose package would bring every API group along: clocks of different machines are never compared, a
// Lease has expired when its record has not changed for Duration on our own clock.
//
//	waiting --(record free or expired, our update accepted)--> leading --(not renewed within RenewWithin)--> lost
type Election struct {
	Client    *Client
	Namespace string
	Name      string
	Identity  string // unique among the processes
	Log       *slog.Logger
	// Duration is how long others wait for a silent holder; RenewWithin, shorter, is when the holder itself gives up.
	// Defaults: 15 s, 10 s, and a try every 2 s.
	Duration, RenewWithin, Every time.Duration

	version string    // resourceVersion of the last record read
	seenAt  time.Time // when it last changed, on our clock
}

// Run waits for the Lease, runs lead while holding it and gives it back when lead or ctx ends.
func (e *Election) Run(ctx context.Context, lead func(context.Context) error) error {
	if e.Duration == 0 {
		e.Duration, e.RenewWithin, e.Every = 15*time.Second, 10*time.Second, 2*time.Second
	}
	if err := e.acquire(ctx); err != nil {
		return err
	}
	e.Log.Info("lease acquired", "lease", e.Namespace+"/"+e.Name, "identity", e.Identity)
	leading, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- lead(leading) }()
	lost := e.renew(ctx, ended)
	cancel()
	err := <-ended
	if lost != nil {
		e.Log.Warn("lease lost", "lease", e.Namespace+"/"+e.Name, "err", lost, "work", err)
		return lost
	}
	e.release()
	return err
}

func (e *Election) acquire(ctx context.Context) error {
	for {
		err := e.try(ctx)
		if err == nil {
			return nil
		}
		if !errors.Is(err, ErrLeaseLost) && ctx.Err() == nil {
			e.Log.Warn("lease not acquired", "lease", e.Namespace+"/"+e.Name, "err", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(e.Every):
		}
	}
}

// renew returns nil when the work or ctx has ended, with the work's result back in ended, and ErrLeaseLost otherwise.
func (e *Election) renew(ctx context.Context, ended chan error) error {
	renewed := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			ended <- err
			return nil
		case <-time.After(e.Every):
		}
		attempt, cancel := context.WithDeadline(ctx, renewed.Add(e.RenewWithin))
		err := e.try(attempt)
		cancel()
		switch {
		case err == nil:
			renewed = time.Now()
		case ctx.Err() != nil: // the next turn ends
		case errors.Is(err, ErrLeaseLost):
			return err
		case time.Since(renewed) >= e.RenewWithin:
			return fmt.Errorf("%w: not renewed for %s: %w", ErrLeaseLost, e.RenewWithin, err)
		default:
			e.Log.Warn("lease not renewed", "lease", e.Namespace+"/"+e.Name, "err", err)
		}
	}
}

// try makes this process the holder if it is or may become it. ErrLeaseLost means that another one is.
func (e *Election) try(ctx context.Context) error {
	var lease coordinationv1.Lease
	err := e.request(e.Client.lease.Get().Name(e.Name)).Do(ctx).Into(&lease)
	if apierrors.IsNotFound(err) {
		lease = coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: e.Namespace, Name: e.Name}}
		lease.Spec = e.record(lease.Spec)
		if err := e.request(e.Client.lease.Post()).Body(&lease).Do(ctx).Into(&lease); err != nil {
			return fmt.Errorf("create lease %s/%s: %w", e.Namespace, e.Name, err)
		}
		e.observe(&lease)
		return nil
	}
	if err != nil {
		return fmt.Errorf("get lease %s/%s: %w", e.Namespace, e.Name, err)
	}
	e.observe(&lease)
	if holder := deref(lease.Spec.HolderIdentity, ""); holder != "" && holder != e.Identity && time.Since(e.seenAt) < e.Duration {
		return fmt.Errorf("%w: %s holds it", ErrLeaseLost, holder)
	}
	lease.Spec = e.record(lease.Spec)
	// The update carries the version that was read: of two that try, one gets a conflict.
	if err := e.request(e.Client.lease.Put().Name(e.Name)).Body(&lease).Do(ctx).Into(&lease); err != nil {
		return fmt.Errorf("update lease %s/%s: %w", e.Namespace, e.Name, err)
	}
	e.observe(&lease)
	return nil
}

func (e *Election) observe(lease *coordinationv1.Lease) {
	if lease.ResourceVersion != e.version {
		e.version, e.seenAt = lease.ResourceVersion, time.Now()
	}
}

func (e *Election) record(old coordinationv1.LeaseSpec) coordinationv1.LeaseSpec {
	now := metav1.NowMicro()
	seconds := int32(e.Duration / time.Second)
	s := coordinationv1.LeaseSpec{
		HolderIdentity: &e.Identity, LeaseDurationSeconds: &seconds, RenewTime: &now,
		AcquireTime: old.AcquireTime, LeaseTransitions: old.LeaseTransitions,
	}
	if deref(old.HolderIdentity, "") != e.Identity {
		transitions := deref(old.LeaseTransitions, -1) + 1
		s.AcquireTime, s.LeaseTransitions = &now, &transitions
	}
	return s
}

// release empties the record, so that the next holder need not wait for it to expire. It is read again first: the
// last update may have been accepted after its answer was no longer waited for.
func (e *Election) release() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var lease coordinationv1.Lease
	err := e.request(e.Client.lease.Get().Name(e.Name)).Do(ctx).Into(&lease)
	if err == nil && deref(lease.Spec.HolderIdentity, "") == e.Identity {
		lease.Spec.HolderIdentity = nil
		err = e.request(e.Client.lease.Put().Name(e.Name)).Body(&lease).Do(ctx).Error()
	}
	if err != nil {
		e.Log.Warn("lease not released, others wait until it expires", "err", err)
	}
}

func (e *Election) request(r *rest.Request) *rest.Request {
	return r.Namespace(e.Namespace).Resource("leases")
}
