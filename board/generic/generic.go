// Package generic lists what ordinary x86-64 servers need.
//
// Promise: tables only. Limits: disks on NVMe or AHCI and the network cards
// named here; RAID controllers, InfiniBand and cards that need firmware files
// are not supported, because firmware files are not in the image.
package generic

import "guardhouse/board/kernel"

// Modules in load order.
var Modules = []kernel.Module{
	{Name: "crct10dif_generic", Reason: "the disk layers ask for this checksum by alias, which only modprobe could answer"},
	{Name: "nvme", Reason: "NVMe disks"},
	{Name: "ahci", Reason: "SATA disks"},
	{Name: "sd_mod", Reason: "the disk layer above AHCI"},
	{Name: "lpc_ich", Reason: "announces the watchdog of older Intel chip sets"},
	{Name: "i2c-i801", Reason: "announces the watchdog of newer Intel chip sets"},
	{Name: "iTCO_wdt", Reason: "watchdog of Intel chip sets"},
	{Name: "sp5100_tco", Reason: "watchdog of AMD chip sets"},
	{Name: "e1000e", Reason: "Intel 1 Gbit, on-board"},
	{Name: "igb", Reason: "Intel 1 Gbit, server cards"},
	{Name: "igc", Reason: "Intel 2.5 Gbit"},
	{Name: "ixgbe", Reason: "Intel 10 Gbit"},
	{Name: "tg3", Reason: "Broadcom 1 Gbit, common on-board in servers"},
}
