package network

import (
	"testing"

	"guardhouse/board/lab/pid1"
)

// TestMain makes the test binary able to be PID 1 of a guest with the image's VLAN and bonding drivers.
func TestMain(m *testing.M) { pid1.Main(m) }
