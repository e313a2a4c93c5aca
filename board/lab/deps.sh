#!/usr/bin/env bash
# Says what this machine must have to build guardhouse and run its lab, what it has, and installs what is missing (Debian 12).
#   deps.sh [TARGET]   TARGET names what it is for: demo, test, run, image; it only changes the expected minutes.
# Asks once before it uses sudo, unless YES=1, root, or no terminal. Without rights: prints the apt line and exits with 2.
# Packages that would start a daemon (chrony) are not here: the lab unpacks them into its own folder. The exception is opencryptoki, whose
# slot daemon answers local members of its group only; tests run one of their own.
set -u
cd "$(dirname "$0")/../.." || exit 1
target=${1:-deps}
need_disk=4 need_mem=3
fail=0

line() { printf '  %-14s %-26s %s\n' "$1" "$2" "$3"; }

want_go=$(awk '$1=="go"{print $2}' go.mod)
have_go=$(go env GOVERSION 2>/dev/null | sed 's/^go//')
line Go "needed $want_go" "found ${have_go:-none}"
if [ -z "$have_go" ] || [ "$(printf '%s\n%s\n' "$want_go" "$have_go" | sort -V | head -1)" != "$want_go" ]; then
	echo "  -> install Go $want_go or newer and put it in PATH"; fail=1
fi
arch=$(uname -m)
line CPU "needed x86_64" "found $arch"
[ "$arch" = x86_64 ] || { echo "  -> the image and its lab are x86-64 only"; fail=1; }
disk=$(df -Pk . | awk 'NR==2{print int($4/1048576)}')
line disk "needed $need_disk GiB free" "found $disk GiB"
[ "$disk" -ge "$need_disk" ] || { echo "  -> free some space, or make clean"; fail=1; }
mem=$(awk '/^MemAvailable/{print int($2/1048576)}' /proc/meminfo)
line memory "needed $need_mem GiB free" "found $mem GiB"
[ "$mem" -ge "$need_mem" ] || { echo "  -> close something; the node's machine and its tools need that much"; fail=1; }
[ "$fail" = 0 ] || exit 2

# package|reason
packages='qemu-system-x86|the machine a node runs on
ovmf|its UEFI firmware, which measures the image
swtpm|its TPM 2.0
swtpm-tools|makes the TPM'"'"'s state
softhsm2|the PKCS#11 token, outside the machine
p11-kit|carries PKCS#11 between token and node
p11-kit-modules|the client module inside the image
opencryptoki|a second token for tests: one that locks its PIN
libnss3|a third one: the slowest
libnss3-tools|makes its database
systemd-boot-efi|the UEFI stub of the image
e2fsprogs|mkfs.ext4, which goes into the image
gcc|cmd/hsm loads a PKCS#11 module, so it is C-linked
libc6-dev|headers for that
sbsigntool|tests let it verify our Secure Boot signatures
mtools|tests look into the image'"'"'s ESP with it
opensc|pkcs11-tool, which looks into the token from outside
openssh-client|the door of a node
openssl|tests let it verify our updates of firmware variables
ca-certificates|Go modules are fetched over TLS'

missing=()
while IFS='|' read -r name reason; do
	[ "$(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || missing+=("$name")
done <<<"$packages"

if [ ${#missing[@]} -gt 0 ]; then
	[ "$(id -u)" = 0 ] && ! apt-cache show "${missing[0]}" >/dev/null 2>&1 && apt-get update -qq >/dev/null 2>&1 # for the sizes
	while IFS='|' read -r name reason; do
		[[ " ${missing[*]} " = *" $name "* ]] || continue
		size=$(apt-cache show --no-all-versions "$name" 2>/dev/null | awk '/^Installed-Size/{printf "%.1f MB", $2/1024; exit}')
		line package "$name (${size:-size unknown})" "$reason"
	done <<<"$packages"
else
	line packages "$(wc -l <<<"$packages") needed" "all installed"
fi
case $target in
demo) line time "expected" "about 6 minutes the first time, 2 after that" ;;
test) line time "expected" "about 45 minutes, most of them for machines in QEMU, one at a time" ;;
run) line time "expected" "about 4 minutes the first time, 1 after that" ;;
image) line time "expected" "about 3 minutes the first time" ;;
esac
# The kernel and chrony are fetched by name when the image and the lab need them, never installed: apt must know them.
apt-cache show linux-image-amd64 >/dev/null 2>&1 && known=1 || known=0
[ ${#missing[@]} -gt 0 ] || [ $known = 0 ] || exit 0

if [ ${#missing[@]} -gt 0 ]; then
	apt="apt-get install -y --no-install-recommends ${missing[*]}"
else
	apt="apt-get update"
fi
if [ "$(id -u)" = 0 ]; then
	sudo=""
elif command -v sudo >/dev/null 2>&1; then
	if [ "${YES:-}" = 1 ] || [ ! -t 0 ]; then
		sudo="sudo -n"
	else
		printf 'Install these packages with sudo? [y/N] '
		read -r answer
		case $answer in y|Y|yes) sudo=sudo ;; *) echo "Nothing installed. To do it yourself:"; echo "  sudo $apt"; exit 2 ;; esac
	fi
else
	sudo=none
fi
if [ "$sudo" = none ] || ! { $sudo true 2>/dev/null; }; then
	echo "No rights to install packages. Run this as root, then again what you ran:"
	echo "  $apt"
	exit 2
fi
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -qq >/dev/null || { echo "apt-get update failed; see its output with: $sudo apt-get update"; exit 2; }
[ ${#missing[@]} -gt 0 ] || exit 0
log=$(mktemp)
if ! $sudo env DEBIAN_FRONTEND=noninteractive $apt >"$log" 2>&1; then
	tail -20 "$log"; echo "apt failed; the whole output is in $log"; exit 2
fi
rm -f "$log"
line installed "${#missing[@]} packages" ""
