package events

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// tolerated is how far the two clocks may drift apart before the difference is taken anew: reading both takes that long now and then, and times
// that go back and forth by it help nobody.
const tolerated = 50 * time.Microsecond

// clock turns CLOCK_MONOTONIC, which records carry, into time of day.
type clock struct{ offset time.Duration }

// adjust follows the time of day, which may be set.
func (c *clock) adjust() error {
	var before, wall, after unix.Timespec
	for _, r := range []struct {
		id int32
		to *unix.Timespec
	}{{unix.CLOCK_MONOTONIC, &before}, {unix.CLOCK_REALTIME, &wall}, {unix.CLOCK_MONOTONIC, &after}} {
		if err := unix.ClockGettime(r.id, r.to); err != nil {
			return fmt.Errorf("read clocks: %w", err)
		}
	}
	now := time.Duration(wall.Nano() - before.Nano()/2 - after.Nano()/2)
	if (now - c.offset).Abs() > tolerated {
		c.offset = now
	}
	return nil
}

func (c *clock) time(monotonic uint64) time.Time {
	return time.Unix(0, int64(c.offset)+int64(monotonic))
}
