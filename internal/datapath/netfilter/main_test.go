package netfilter

import (
	"testing"

	"github.com/strait-net/strait/internal/datapath/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }
