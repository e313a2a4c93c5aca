// Package systemd holds unit files that run the node's services under systemd instead of our init: for evaluation on an ordinary
// machine, and for whoever wants to hold our init against something known. The programs are the image's, unchanged: they speak sd_notify
// and take their sockets by LISTEN_FDS.
//
// Limits: nothing here measures, seals or mounts anything, and what only init does does not exist (init.Status, init.Network, logs and
// power verbs answer "unavailable"): the network and the data folder are the machine's own affair. Install the programs in
// /usr/lib/guardhouse, the *.service and *.socket files in /etc/systemd/system, guardhouse.sysusers as /etc/sysusers.d/guardhouse.conf
// and guardhouse.tmpfiles as /etc/tmpfiles.d/guardhouse.conf. The tests hold the files against sandbox.Table.
package systemd

import "embed"

// Files are the unit files and the two lists of users and folders.
//
//go:embed *.service *.socket guardhouse.sysusers guardhouse.tmpfiles
var Files embed.FS
