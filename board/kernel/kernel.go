// Package kernel holds what we ask of the kernel on every board: its command
// line and the modules that do not depend on the machine, each with its
// reason.
//
// Promise: tables only. Changing a word here changes PCR 11 and nothing else
// does; the build writes the tables into the image and the manifest.
//
// Limits: the kernel is Debian's packaged one; what it has built in needs no
// row here (TPM, serial, IPv6, EFI runtime).
package kernel

import "strings"

// Module is a kernel module a board wants. Its dependencies are found at
// build time; load order is table order.
type Module struct {
	Name   string // file name without .ko
	Params string // for finit_module(2); the kernel's command line does not reach modules loaded without modprobe
	Reason string
	// Probe loads the module only when the machine has a PCI device for it, or
	// for a module that needs it.
	Probe bool
	// Needs names modules that must come with this one although the kernel
	// does not say so (asked for by alias, or binding to what it announces).
	Needs []string
}

// Word is one word of the kernel command line.
type Word struct{ Text, Reason string }

// CommandLine is the command line of every image, in order.
var CommandLine = []Word{
	{"console=ttyS0,115200", "the serial line is the machine's first console; there is no screen driver we rely on"},
	{"quiet", "the console belongs to setup and login, not to driver chatter"},
	{"loglevel=3", "only errors may interrupt the operator; the ring keeps the rest for `log show`"},
	{"panic=10", "a sealed node has nobody at the keyboard: reboot, after time to read the last words"},
	{"oops=panic", "a kernel that has corrupted itself must not go on holding keys"},
	{"lockdown=confidentiality", "root may not read or change kernel memory, not even our own root"},
	{"module.sig_enforce=1", "only modules signed by the kernel's builder load, whoever asks"},
	{"lsm=landlock,lockdown,yama,integrity", "the security modules we use; none that waits for a policy file"},
	{"init_on_alloc=1", "memory of one process never shows in another"},
	{"slab_nomerge", "object caches stay apart, so one overflow reaches less"},
	{"vsyscall=none", "no fixed address with code in it; our programs do not use it"},
	{"debugfs=off", "debug interfaces are not part of the product"},
}

// Text returns the command line as the kernel gets it.
func Text(words []Word) string {
	list := make([]string, 0, len(words))
	for _, w := range words {
		list = append(list, w.Text)
	}
	return strings.Join(list, " ")
}

// Modules are wanted on every board.
var Modules = []Module{
	{Name: "crc32c-intel", Reason: "checksums of ext4 in hardware; absent processors refuse it and the next row serves"},
	{Name: "crc32c_generic", Reason: "ext4 asks for crc32c by alias, which only modprobe could answer"},
	{Name: "ext4", Reason: "file system of the data disk"},
	{Name: "aesni-intel", Reason: "AES of the data volume in hardware; absent processors refuse it and the built-in code serves"},
	{Name: "sha256-ssse3", Reason: "check values of the data volume in hardware, likewise"},
	{Name: "ecb", Reason: "xts is made of it, asked for by alias"},
	{Name: "xts", Reason: "cipher mode of the data volume, asked for by alias"},
	{Name: "authenc", Reason: "encryption with check values, asked for by alias"},
	{Name: "dm-integrity", Reason: "room for check values, and a journal that writes them with their sectors"},
	{Name: "dm-crypt", Reason: "encryption of the data volume"},
	{Name: "nls_ascii", Reason: "default character set of this kernel's FAT"},
	{Name: "nls_cp437", Reason: "code page of FAT short names"},
	{Name: "vfat", Reason: "the EFI system partition"},
	{Name: "efivarfs", Reason: "boot order and Secure Boot state, read when needed"},
	{Name: "bonding", Params: "max_bonds=0", Reason: "network setup: bonds; none is made by loading"},
	{Name: "8021q", Reason: "network setup: VLANs"},
	{Name: "nf_tables", Reason: "the network fence: processes that use the HSM reach its addresses only"},
	{Name: "nft_reject_inet", Reason: "what the fence stops is told so at once"},
	{Name: "button", Reason: "the power button, as PID 1 turns it into a clean stop"},
	{Name: "evdev", Reason: "the device through which the power button is read"},
}
