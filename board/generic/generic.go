// Package generic lists what ordinary x86-64 servers need.
//
// Promise: tables only. Limits: disks on NVMe or AHCI and the network cards
// named here; RAID controllers, InfiniBand and cards that need firmware files
// are not supported, because firmware files are not in the image.
package generic

import "guardhouse/board/kernel"

// Modules in load order, each only where its device is.
var Modules = []kernel.Module{
	{Name: "nvme", Probe: true, Needs: []string{"crct10dif_generic"}, Reason: "NVMe disks; the checksum is asked for by alias, which only modprobe could answer"},
	{Name: "ahci", Probe: true, Needs: []string{"crct10dif_generic", "sd_mod"}, Reason: "SATA disks, with the disk layer above"},
	{Name: "lpc_ich", Probe: true, Needs: []string{"iTCO_wdt"}, Reason: "announces the watchdog of older Intel chip sets"},
	{Name: "i2c-i801", Probe: true, Needs: []string{"iTCO_wdt"}, Reason: "announces the watchdog of newer Intel chip sets"},
	{Name: "sp5100_tco", Probe: true, Reason: "watchdog of AMD chip sets"},
	{Name: "usbcore", Probe: true, Params: "authorized_default=0", Reason: "USB sticks; no driver touches one before an administrator's verb lets it"},
	{Name: "xhci-pci", Probe: true, Needs: []string{"usb-storage", "sd_mod"}, Reason: "a USB stick with an update, attached when the machine starts; no other USB device has a driver"},
	{Name: "e1000e", Probe: true, Reason: "Intel 1 Gbit, on-board"},
	{Name: "igb", Probe: true, Reason: "Intel 1 Gbit, server cards"},
	{Name: "igc", Probe: true, Reason: "Intel 2.5 Gbit"},
	{Name: "ixgbe", Probe: true, Reason: "Intel 10 Gbit"},
	{Name: "tg3", Probe: true, Reason: "Broadcom 1 Gbit, common on-board in servers"},
}
