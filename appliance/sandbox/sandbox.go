// Package sandbox says what each process of a node may hold (Table) and makes a process that holds nothing else (Command and Shim).
// It promises that a service started through it has its own uid and gid, no other group, no capability but those in its row, no way to
// gain one (no_new_privs, empty bounding set), no inherited environment or descriptor, and writes no core file; one whose row has a View sees mounts of its own,
// and one whose row has a Confinement opens no other file and makes no other system call than it names.
//
// Limits: only the process that reads update bundles has a Confinement yet; Landlock of the image's kernel knows files, not connections, which
// are up to the system calls. The shim must run as root to change the
// uid; a Launch without uid keeps the caller's, for tests and for a run under systemd, which does the same work from the unit file.
package sandbox
