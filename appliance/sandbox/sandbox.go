// Package sandbox says what each process of a node may hold (Table) and makes a process that holds nothing else (Command and Shim).
// It promises that a service started through it has its own uid and gid, no other group, no capability but those in its row, no way to
// gain one (no_new_privs, empty bounding set), no inherited environment or descriptor, and writes no core file; one whose row has a View
// sees mounts of its own. What a row's Confinement says holds from the first instruction of the service's program: the shim, which is
// init's own code, puts it on itself and then becomes the program, so no service can skip it, and none is started where the kernel lacks
// a part of it.
//
// Limits: Landlock of the image's kernel (6.1) knows files, not connections; those are up to the system calls, which know kinds of
// sockets and no addresses, and to init's network fence. Hgs, console, forward and the processes that init starts of its own program are
// kept to named files. Hsm, ledger and clock open what their uid may; ledger and clock start no program but their own. The clock can't be
// kept to its folder: Landlock names files that are there, and that one comes with the data disk, later. The shim must run as root to
// change the uid; a Launch without uid keeps the caller's, for tests and for a run under systemd, which does the same work from the unit
// file.
package sandbox
