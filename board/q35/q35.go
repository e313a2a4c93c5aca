// Package q35 lists what QEMU's q35 machine and other virtio machines need:
// the lab, and customers who evaluate the product as a guest.
//
// Promise: tables only. Limits: paravirtual devices of QEMU and KVM; other
// hypervisors emulate real hardware and are served by board/generic.
package q35

import "guardhouse/board/kernel"

// Modules in load order.
var Modules = []kernel.Module{
	{Name: "virtio_pci", Reason: "bus of all the following"},
	{Name: "virtio-rng", Reason: "entropy from the host before anything asks for random numbers"},
	{Name: "virtio_blk", Reason: "disks"},
	{Name: "virtio_net", Reason: "network"},
	{Name: "virtio_console", Reason: "named ports: the link to the token outside the machine"},
	{Name: "i6300esb", Probe: true, Reason: "hardware watchdog that QEMU emulates"},
}
