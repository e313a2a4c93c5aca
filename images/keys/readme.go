package keys

import "fmt"

func readme(f file) string {
	head := fmt.Sprintf("Key set %q of guardhouse images.\n\n", f.Name)
	if f.Evaluation {
		head += "MADE FOR EVALUATION. Its private keys lie unprotected beside this file. A node built with it says so on every screen. Never use it\nfor a node that guards real keys.\n\n"
	}
	return head + `All five private keys (*.key) belong into a safe place that is not the machine on which images are built every day: offline media, or a
token that signs (name it in set.json: "commands": {"db": ["program", "argument", ...]}; the program gets the 32-byte SHA-256 digest on
standard input and answers with the RSASSA-PKCS1-v1_5 signature; then remove the key file). Keep two copies in two buildings. The
certificates (*.crt) are no secret; their dates mean nothing, neither to firmware nor to a node.

pk.key       Needed only to replace kek or itself. Lost: the nodes' Secure Boot keys can be changed in the firmware's setup only. Leaked: somebody
             with administrator rights on a node's firmware could replace its Secure Boot keys; PCR 7 changes and the disk stays shut.
kek.key      Needed for dbx updates and a new db (mkimage firmware-update). Lost: as pk. Leaked: somebody could revoke your images or add their own signing
             certificate to db; PCR 7 changes with it and the disk stays shut.
db.key       Needed for each release. Lost: make a new set and enrol it on each node. Leaked: somebody else's images start on your
             nodes, but without policy.key they do not open the disk. Change to a new set, then forbid this certificate.
policy.key   Needed for each release. Lost: no later release opens the disks by itself: each node needs its recovery secret once, then
             "reseal". Leaked: together with db.key and a node in hand its disk can be opened. Change to a new set at once.
release.key  Needed for each release (mkimage release). Its public half is in every image: a node takes only bundles that it signed.
             Lost: nodes take no further updates over the console. Leaked: with db.key and policy.key somebody could install an image
             of his own through an administrator's console. Change to a new set.

To change to a new set (mkimage keys -o NEW ...), while this one, OLD, is still there:
 1. mkimage build --keys NEW --also-sign OLD, mkimage release with the same two, and install that on every node. Both sets have signed it,
    so it starts and opens the disk before, during and after the change of the firmware.
 2. mkimage firmware-update --keys OLD --to NEW -o STEPS, and give each node's firmware the files of STEPS in their order. A node may rest
    after any of them.
 3. Build the next release with --keys NEW alone and install it.
 4. If OLD has leaked: mkimage firmware-update --keys NEW --forbid-keys OLD, with the release built for that dbx (--dbx) installed before.
A dbx update of any kind changes PCR 7: a release built with --dbx and the coming content must be installed first.
`
}
