package verb

import (
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

var (
	everywhere = []policy.Door{policy.DoorSetup, policy.DoorSerial, policy.DoorSSH}
	loggedIn   = []policy.Door{policy.DoorSerial, policy.DoorSSH}
	onlySSH    = []policy.Door{policy.DoorSSH}
)

const (
	anyone   policy.AdminRole = ""
	reviewer                  = policy.AdminReviewer
	operator                  = policy.AdminOperator
	owner                     = policy.AdminOwner
)

func place(name string, kind Kind, help string) Param {
	return Param{Name: name, Kind: kind, Help: help}
}

func flag(name string, kind Kind, help string, choices ...string) Param {
	return Param{Name: name, Kind: kind, Help: help, Flag: true, Optional: true, Choices: choices}
}

var keyParam = place("key", Text, "the beginning of its reference or of a thumbprint, 6 characters or more")

// All lists every verb, in the order of the help page. The table is made anew at each call, because handlers read it.
func All() []*Verb {
	var all []*Verb
	for _, group := range [][]Verb{generalVerbs(), hostVerbs(), denialVerbs(), tpmVerbs(), policyVerbs(), classVerbs(), trustVerbs(), keyVerbs(), keyCareVerbs(), tenantVerbs(), rotationVerbs(), protectorVerbs(), signerVerbs(), serviceVerbs(), timeVerbs(), httpsVerbs(), nodeVerbs(), peerVerbs(), updateVerbs(), recoveryVerbs(), adminVerbs(), auditVerbs()} {
		for i := range group {
			all = append(all, &group[i])
		}
	}
	return all
}

// Lookup finds a verb by its full name.
func Lookup(name string) (*Verb, bool) {
	for _, v := range All() {
		if v.Name == name {
			return v, true
		}
	}
	return nil, false
}

func generalVerbs() []Verb {
	return []Verb{
		{Name: "status", Role: anyone, Doors: everywhere, Risk: Reads, Run: runStatus,
			Help: "what is wrong, what to do first, and how the node is", Example: "status",
			Replaces: []string{"Get-HgsServer", "Test-HgsServer", "Get-HgsTrace"}},
		{Name: "help", Role: anyone, Doors: everywhere, Risk: Reads, Run: runHelp,
			Params: []Param{{Name: "topic", Kind: Rest, Optional: true, Help: "a verb, or a Microsoft cmdlet"}},
			Help:   "verbs; help VERB for one; help CMDLET for what replaces it", Example: "help Get-HgsServer"},
		{Name: "setup", Role: anyone, Doors: []policy.Door{policy.DoorSetup}, Risk: Changes, Dialogue: setupDialogue,
			Help: "set this node up from an answer file", Example: "setup",
			More: "It asks for the answer file and shows its hash and what it says. Then it asks for the secrets file (HSM PIN, serial passphrases), " +
				"which you have encrypted on your workstation to the setup key that status shows: age -a -r KEY secrets.toml. Nothing is changed before you type yes.",
			Replaces: []string{"Install-WindowsFeature", "Install-HgsServer", "Initialize-HgsServer"}},
		{Name: "logout", Role: anyone, Doors: loggedIn, Risk: Reads, Run: runLogout,
			Help: "end the session", Example: "logout"},
	}
}

func hostVerbs() []Verb {
	name := place("name", Word, "the host's name here")
	return []Verb{
		{Name: "host add", Role: operator, Doors: loggedIn, Risk: Changes, Run: hostAdd,
			Params: []Param{name, flag("class", Word, "host class, default: default"), flag("note", Text, "for people"),
				flag("pending", Text, "take the key of this unknown host (host pending) instead of a file")},
			Stdin: "the host's certificate or public key: PEM, DER or base64",
			Help:  "register a host by its host key", Example: "host add hv7 < hv7.cer",
			Replaces: []string{"Add-HgsAttestationHostKey"}},
		{Name: "host list", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: hostList,
			Help: "registered hosts and when each last attested", Example: "host list --json",
			Replaces: []string{"Get-HgsAttestationReport", "Get-HgsAttestationTpmHost"}},
		{Name: "host show", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: hostShow, Params: []Param{name},
			Help: "one host: key or TPM, class, last attestation", Example: "host show hv7",
			Replaces: []string{"Get-HgsAttestationTpmHost"}},
		{Name: "host find", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: hostFind,
			Params: []Param{{Name: "word", Kind: Text, Optional: true, Help: "a name, an inventory number, the beginning of an id (8 characters or more), a MAC address, the computer's serial number or " +
				"SMBIOS UUID, or the serial number or a thumbprint of an EK certificate, in hexadecimal; without it a file is read"}},
			Stdin: "a platform identifier (XML), or a certificate or public key, of an EK or a host key: PEM, DER or base64",
			Help:  "whether a host is registered, by a word or a file", Example: "host find < hv7.xml",
			More: "Of a file only its key counts. An id is the SHA-256 of a TPM's endorsement key (EK) or of a host key, as SubjectPublicKeyInfo. " +
				"MAC addresses, serial number and SMBIOS UUID are what the platform identifier said when the host was registered from it: nothing proves them, and a host that " +
				"was registered by a certificate, by --pending or with an earlier release has none.",
			Replaces: []string{"Get-HgsAttestationTpmHost"}},
		{Name: "host pending", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: hostPending,
			Help: "unknown hosts that asked, with the verb that accepts each", Example: "host pending"},
		{Name: "host revoke", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: hostRevoke,
			Params: []Param{name, flag("reason", Text, "kept as the host's note")},
			Help:   "refuse a host at once, its valid certificates included", Example: "host revoke hv7 --reason stolen"},
		{Name: "host reattest", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: hostReattest, Params: []Param{name},
			Help: "refuse what a host has now: it must attest again", Example: "host reattest hv7"},
		{Name: "host restore", Role: operator, Doors: loggedIn, Risk: Changes, Run: hostRestore, Params: []Param{name},
			Help: "let a revoked host attest again", Example: "host restore hv7"},
		{Name: "host remove", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: hostRemove,
			Params: []Param{name, flag("mode", Choice, "only what it is registered with in this mode", "TPM", "HostKey"), phrase},
			Help:   "forget a host; its certificates are refused", Example: "host remove hv7", More: wayBack,
			Replaces: []string{"Remove-HgsAttestationTpmHost"}},
		{Name: "host add-tpm", Role: operator, Doors: loggedIn, Risk: Changes, Run: hostAddTPM,
			Params: []Param{name, flag("policy-version", Choice, "default v2, which needs a trusted certificate", "v1", "v2"),
				flag("force", Switch, "v1 only: without a trusted certificate"), flag("reason", Text, "of --force, kept with the host"),
				flag("class", Word, "host class, default: default"), flag("note", Text, "for people"), flag("inventory", Text, "your own number for the machine"),
				flag("pending", Text, "take the TPM of this unknown host (host pending) instead of a file")},
			Stdin: "its platform identifier (XML), or its endorsement key's certificate",
			Help:  "register a host by its TPM", Example: "host add-tpm hv7 < hv7.xml",
			More: "Version v2 wants an endorsement key certificate that leads to a root in tpm-trust list. Version v1 can do without (--force --reason). " +
				"A host passes with a baseline and a code integrity policy of its own version only.",
			Replaces: []string{"Add-HgsAttestationTpmHost"}},
		{Name: "host set", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: hostSet,
			Params: []Param{name, flag("class", Word, "host class: which policies hold for it"), flag("note", Text, "for people"), dryRun},
			Help:   "change a host's class or note", Example: "host set hv7 --class edge --dry-run"},
		{Name: "host findings", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: hostFindings, Params: []Param{name},
			Help: "why a host's TPM evidence failed, and what to do", Example: "host findings hv7",
			Replaces: []string{"Get-HgsTrace"}},
		{Name: "evidence verify", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: evidenceVerify, Params: []Param{flag("host", Word, "only of this host")},
			Help: "prove the stored boot logs again and compare with what is on record", Example: "evidence verify --host hv7"},
	}
}

var (
	policyVersion = flag("policy-version", Choice, "default v2", "v1", "v2")
	fromHost      = flag("host", Word, "take what this host last showed instead of a file")
	phrase        = flag("phrase", Text, "what a refusal asks you to type")
	staging       = flag("stage", Switch, "put it into the draft: no effect before draft commit")
	dryRun        = flag("dry-run", Switch, "only say what it would do to hosts")
)

const wayBack = "After the attestation mode was switched, what the other mode needs is the way back: removing it is refused while a host has not passed in " +
	"the new mode. The refusal names those hosts and the phrase that overrides it, which is recorded."

func tpmVerbs() []Verb {
	name := place("name", Word, "a name for it")
	existing := []Param{place("name", Word, "its name"), dryRun, staging, phrase}
	return []Verb{
		{Name: "baseline add", Role: operator, Doors: loggedIn, Risk: Changes, Run: baselineAdd, Params: []Param{name, policyVersion, fromHost, dryRun, staging},
			Stdin: "the boot log of one host of this hardware (.tcglog)",
			Help:  "accept hosts whose Secure Boot is set up like this", Example: "baseline add r740-2024 < r740.tcglog",
			Replaces: []string{"Add-HgsAttestationTpmPolicy"}},
		{Name: "baseline list", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: baselineList,
			Help: "baselines of firmware and Secure Boot", Example: "baseline list",
			Replaces: []string{"Get-HgsAttestationTpmPolicy", "Get-HgsAttestationPolicy"}},
		{Name: "baseline remove", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: removal(policy.CmdBaselineRemove), Params: existing,
			Help: "refuse hosts that match only this baseline", Example: "baseline remove r740-2024 --dry-run", More: wayBack,
			Replaces: []string{"Remove-HgsAttestationPolicy"}},
		{Name: "ci-policy add", Role: operator, Doors: loggedIn, Risk: Changes, Run: ciPolicyAdd,
			Params: []Param{name, policyVersion, fromHost, flag("title", Text, "with --host: which of its policies"), dryRun, staging},
			Stdin:  "the binary code integrity policy (.bin, .cip, .p7b)",
			Help:   "accept hosts that run under this policy", Example: "ci-policy add allow-ms < SIPolicy.bin",
			Replaces: []string{"Add-HgsAttestationCIPolicy"}},
		{Name: "ci-policy list", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: ciPolicyList,
			Help: "code integrity policies that hosts may run under", Example: "ci-policy list",
			Replaces: []string{"Get-HgsAttestationPolicy"}},
		{Name: "ci-policy remove", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: removal(policy.CmdCIPolicyRemove), Params: existing,
			Help: "refuse hosts that run under this policy only", Example: "ci-policy remove allow-ms", More: wayBack,
			Replaces: []string{"Remove-HgsAttestationPolicy"}},
		{Name: "dump-key add", Role: operator, Doors: loggedIn, Risk: Changes, Run: dumpKeyAdd,
			Params: []Param{name, flag("sha256", Text, "of the public key, 64 hexadecimal digits, instead of a file"), fromHost, dryRun, staging},
			Stdin:  "the dump key's certificate (PEM or DER), or the boot log of a host that encrypts dumps to it (.tcglog)",
			Help:   "accept hosts that encrypt crash dumps to this key", Example: "dump-key add ops < dump-key.cer",
			More: "What counts is the SHA-256 of the public key as the hosts' registry has it (CrashControl, EncryptionCertificates, PublicKey). Of a certificate it is " +
				"computed here.",
			Replaces: []string{"Add-HgsAttestationDumpPolicy"}},
		{Name: "dump-key list", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: dumpKeyList,
			Help: "keys that crash dumps may be encrypted to", Example: "dump-key list",
			Replaces: []string{"Get-HgsAttestationPolicy"}},
		{Name: "dump-key remove", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: removal(policy.CmdDumpKeyRemove), Params: existing,
			Help: "refuse hosts that encrypt crash dumps to this key", Example: "dump-key remove ops", More: wayBack,
			Replaces: []string{"Remove-HgsAttestationPolicy"}},
	}
}

func policyVerbs() []Verb {
	on, off := true, false
	params := []Param{place("policy", Word, "a name as in policy list"), flag("class", Word, "only for hosts of this class; default: all hosts"), dryRun, staging}
	return []Verb{
		{Name: "policy list", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: policyList, Params: []Param{flag("class", Word, "as they hold for this host class")},
			Help: "attestation policies of TPM mode, and which hold", Example: "policy list --class edge",
			Replaces: []string{"Get-HgsAttestationPolicy"}},
		{Name: "policy enable", Role: operator, Doors: loggedIn, Risk: Disrupts, Params: params, Run: policySwitch(&on),
			Help: "ask hosts for more: those that don't meet it fail", Example: "policy enable Hgs_BitLockerEnabled --dry-run",
			Replaces: []string{"Enable-HgsAttestationPolicy"}},
		{Name: "policy disable", Role: operator, Doors: loggedIn, Risk: Changes, Params: params, Run: policySwitch(&off),
			Help: "ask hosts for less; locked policies stay on", Example: "policy disable Hgs_IommuEnabled --class edge",
			Replaces: []string{"Disable-HgsAttestationPolicy"}},
		{Name: "policy inherit", Role: operator, Doors: loggedIn, Risk: Disrupts, Params: params, Run: policySwitch(nil),
			Help: "take a switch back: what is wider, or the default, holds", Example: "policy inherit Hgs_IommuEnabled --class edge"},
		{Name: "draft show", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: draftShow,
			Help: "staged changes of policies and what they would do to hosts", Example: "draft show",
			More:     "Changes given with --stage wait in the draft, which is applied as one by draft commit and taken back as one by draft undo.",
			Replaces: []string{"Get-HgsAttestationPolicy"}},
		{Name: "draft commit", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: draftCommit,
			Params: []Param{flag("digest", Text, "only the draft that draft show has shown"), dryRun, phrase},
			Help:   "apply all staged changes as one", Example: "draft commit --dry-run"},
		{Name: "draft undo", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: draftUndo, Params: []Param{dryRun, phrase},
			Help: "take the last commit of a draft back, as one", Example: "draft undo"},
		{Name: "draft drop", Role: operator, Doors: loggedIn, Risk: Changes, Run: draftDrop,
			Help: "forget all staged changes", Example: "draft drop"},
	}
}

func trustVerbs() []Verb {
	vendor := place("vendor", Word, "a label for the vendor")
	return []Verb{
		{Name: "tpm-trust import", Role: operator, Doors: loggedIn, Risk: Changes, Run: trustImport,
			Params: []Param{vendor, flag("virtual", Switch, "virtual TPMs: off until switched on"), dryRun},
			Stdin:  "certificates: PEM, DER or PKCS#7",
			Help:   "trust a TPM vendor's root and intermediate certificates", Example: "tpm-trust import infineon < infineon.pem",
			More: "Of Microsoft's TrustedTpm.cab give the folders of the vendors whose TPMs you have, expanded on a workstation: expand -F:* TrustedTpm.cab DIR. " +
				"What is self-signed becomes a root, the rest intermediates."},
		{Name: "tpm-trust list", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: trustList,
			Params: []Param{{Name: "vendor", Kind: Word, Optional: true, Help: "only this vendor, with each certificate"}},
			Help:   "TPM vendors that are trusted", Example: "tpm-trust list infineon"},
		{Name: "tpm-trust missing", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: trustMissing,
			Help: "certificates that hosts' TPMs need and that are not here", Example: "tpm-trust missing",
			More: "Each is named once, with its key id, where its certificates say that it is to be had (AIA), and the hosts that need it."},
		{Name: "tpm-trust remove", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: trustRemove,
			Params: []Param{place("name", Text, "a vendor, or one certificate's SHA-256 thumbprint"), dryRun, phrase},
			Help:   "stop trusting a TPM vendor or one certificate", Example: "tpm-trust remove infineon --dry-run", More: wayBack},
		{Name: "tpm-trust vendor", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: trustVendor,
			Params: []Param{vendor, {Name: "state", Kind: Choice, Choices: []string{"on", "off"}}, dryRun},
			Help:   "switch a TPM vendor on or off", Example: "tpm-trust vendor infineon off --dry-run"},
	}
}

func keyVerbs() []Verb {
	one := []Param{keyParam, dryRun}
	return []Verb{
		{Name: "key new", Role: operator, Doors: loggedIn, Risk: Changes, Run: keyNew,
			Params: []Param{flag("roles", Text, "all, or a list with commas; default all: "+roleNames()),
				flag("bits", Choice, "default 2048", "2048", "3072", "4096"),
				flag("subject", Text, "name that tenants see, default: the service's name")},
			Help: "make keys with certificates in the HSM", Example: "key new --roles all --subject \"Contoso HGS\"",
			Replaces: []string{"Add-HgsKeyProtectionCertificate"}},
		{Name: "key list", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: keyList,
			Help: "keys, certificates and what the token says of them", Example: "key list --json",
			Replaces: []string{"Get-HgsKeyProtectionCertificate", "Get-HgsKeyProtectionConfiguration", "Get-HgsAttestationSignerCertificate"}},
		usageVerb(), compromiseVerb(),
		{Name: "key primary", Role: operator, Doors: loggedIn, Risk: Changes, Params: one, Run: keyChange(policy.CmdKeyPrimary),
			Help: "use this key for new key protectors of its role", Example: "key primary 5f3ac9",
			Replaces: []string{"Set-HgsKeyProtectionCertificate", "Set-HgsKeyProtectionConfiguration"}},
		{Name: "key enable", Role: operator, Doors: loggedIn, Risk: Changes, Params: one, Run: keyChange(policy.CmdKeyEnable),
			Help: "use a disabled key again", Example: "key enable 5f3ac9",
			Replaces: []string{"Set-HgsKeyProtectionCertificate"}},
		{Name: "key disable", Role: operator, Doors: loggedIn, Risk: Disrupts, Params: one, Run: keyChange(policy.CmdKeyDisable),
			Help: "refuse key protectors that only this key opens", Example: "key disable 5f3ac9",
			Replaces: []string{"Set-HgsKeyProtectionCertificate"}},
		{Name: "key remove", Role: operator, Doors: loggedIn, Risk: Disrupts, Params: one, Run: keyChange(policy.CmdKeyRemove),
			Help: "forget a disabled key; the token keeps it", Example: "key remove 5f3ac9",
			Replaces: []string{"Remove-HgsKeyProtectionCertificate"}},
	}
}

func signerVerbs() []Verb {
	return []Verb{
		{Name: "attestation-signer list", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: signerList,
			Help: "attestation signers whose health certificates count", Example: "attestation-signer list",
			Replaces: []string{"Get-HgsKeyProtectionAttestationSignerCertificate", "Get-HgsAttestationSignerCertificate"}},
		{Name: "attestation-signer renew", Role: operator, Doors: loggedIn, Risk: Changes, Run: signerRenew,
			Help: "publish a new attestation signer now; it signs in a day", Example: "attestation-signer renew",
			More: "The node does this by itself at two thirds of an attestation signer's life, and when a clock was wrong. SQL Server drivers keep the list of attestation signers " +
				"for up to a day: that is why the new one signs 24 hours later, and the old one stays published for 24 hours after that. To use it at once: key primary.",
			Replaces: []string{"Start-ScheduledTask"}},
		{Name: "attestation-signer trust", Role: operator, Doors: loggedIn, Risk: Changes, Run: signerTrust, Params: []Param{place("name", Word, "a name for it")},
			Stdin: "the attestation signer's certificate: PEM, DER or base64",
			Help:  "accept another service's health certificates", Example: "attestation-signer trust site2 < signer.cer",
			Replaces: []string{"Add-HgsKeyProtectionAttestationSignerCertificate"}},
		{Name: "attestation-signer distrust", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: signerDistrust, Params: []Param{place("name", Text, "its name or SHA-256 thumbprint")},
			Help: "stop accepting that attestation signer's health certificates", Example: "attestation-signer distrust site2",
			Replaces: []string{"Remove-HgsKeyProtectionAttestationSignerCertificate"}},
		{Name: "attestation-signer deny-before", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: signerDeny,
			Params: []Param{place("time", Text, "now, or UTC as 2026-11-22T15:04:05Z"),
				{Name: "attestation-signer", Kind: Text, Optional: true, Help: "only this one's: its name or thumbprint; default: all"}},
			Help: "refuse older health certificates: all hosts attest anew", Example: "attestation-signer deny-before now",
			More: "Without a name it is for all hosts: each attests again by itself when it next needs a key. With one it is for the hosts that have its " +
				"certificates, as after a foreign service was broken into. A date can only move forward: nobody can make old certificates good again.",
			Replaces: []string{"Set-HgsKeyProtectionAttestationSignerCertificatePolicy"}},
	}
}

func serviceVerbs() []Verb {
	return []Verb{
		{Name: "service show", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: serviceShow,
			Help: "name, mode, ports, life of health certificates", Example: "service show",
			Replaces: []string{"Get-HgsServer"}},
		{Name: "service set", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: serviceSet,
			Params: []Param{flag("mode", Choice, "attestation mode that hosts are told", modeNames...),
				flag("http", Choice, "port 80", "on", "off"), flag("https", Choice, "port 443", "on", "off"),
				flag("health-life", Duration, "life of health certificates, 15m to 24h"),
				flag("other-signing", Choice, "list signing keys that are not primary in metadata.xml", "on", "off"),
				flag("foreign-forms", Choice, "accept certificate signatures over other forms than DER", "on", "off"),
				flag("time-limit", Duration, "nothing is issued while the time may be wrong by more, 1s to 5m"), dryRun},
			Help: "change mode, ports or certificate life", Example: "service set --mode TPM --dry-run",
			More:     "A change of the mode is tried on all stored evidence first, and holds on every process within a second. To take it back: mode undo.",
			Replaces: []string{"Set-HgsServer"}},
		{Name: "mode status", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: modeStatus,
			Params: []Param{flag("mode", Choice, "default: the one that is served", modeNames...)},
			Help:   "which hosts have passed in an attestation mode, which not", Example: "mode status --mode TPM",
			More: "Switch with service set --mode, back with mode undo: registrations of the other mode are kept. A host that is registered in one mode only " +
				"fails in the other. A host has passed if the last that was seen of it since the switch is a pass; until all have, what the mode before needs can't be " +
				"removed."},
		{Name: "mode undo", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: modeUndo, Params: []Param{dryRun},
			Help: "switch back to the attestation mode before", Example: "mode undo --dry-run",
			More:     "What the hosts were registered with in that mode is still there. Undoing again switches forth again.",
			Replaces: []string{"Set-HgsServer"}},
		{Name: "network show", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: networkShow,
			Params: []Param{flag("toml", Switch, "as the file that network set takes")},
			Help:   "settings and state of the network interfaces", Example: "network show --toml > net.toml"},
		{Name: "network set", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: networkSet,
			Stdin: "TOML as in [node.network] of the answer file",
			Help:  "replace this node's network settings", Example: "network set < net.toml"},
		{Name: "hsm status", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: hsmStatus,
			Help: "the token and the process that holds it", Example: "hsm status"},
		{Name: "hsm unlock", Role: operator, Doors: loggedIn, Risk: Changes, Run: hsmUnlock, Dialogue: hsmUnlockDialogue,
			Params: []Param{lastTry}, Stdin: "the token's PIN on one line",
			Help: "give an attended node its token's PIN after a boot", Example: "hsm unlock",
			More: "The PIN is not shown while it is typed. Only the HSM process has it, in memory, until the machine stops; it is lent again to a restarted worker without asking. " +
				"A wrong PIN is tried once."},
		{Name: "hsm retry", Role: operator, Doors: loggedIn, Risk: Changes, Run: hsmRetry, Params: []Param{lastTry},
			Help: "try the token again after it was mended", Example: "hsm retry",
			More: "For a token that stopped (wrong or locked PIN) or that was replaced by another one of the same name. A token that was only away comes back by itself. " +
				"If the PIN is wrong, this costs one of the token's tries."},
		{Name: "hsm site-data list", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: siteList,
			Help: "this site's own files for the HSM pack, by hash", Example: "hsm site-data list"},
		{Name: "hsm site-data put", Role: owner, Doors: onlySSH, Risk: Changes, Run: sitePut, Params: []Param{place("name", Word, "as the pack declares it")},
			Stdin: "the file as it is: a certificate, a key, a security-world file",
			Help:  "store one of them on this node's disk", Example: "hsm site-data put client.pem < client.pem",
			More: "An image never holds what belongs to one site. These files lie on the node's disk, readable by the HSM process and the pack's helper only; " +
				"the audit records name and hash. The PIN does not belong here: it is one of the node's secrets."},
		{Name: "hsm site-data remove", Role: owner, Doors: loggedIn, Risk: Disrupts, Run: siteRemove, Params: []Param{place("name", Word, "as site-data list shows it")},
			Help: "delete one of them from this node's disk", Example: "hsm site-data remove client.pem"},
	}
}

// lastTry is what stands between a person's hurry and a locked token.
var lastTry = flag("last-try", Switch, "although one more wrong PIN locks the token")

func nodeVerbs() []Verb {
	return []Verb{
		{Name: "node list", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: nodeList,
			Help: "nodes of this service and their fingerprints", Example: "node list"},
		{Name: "node measure", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: nodeMeasure,
			Help: "the PCRs, read from the TPM now", Example: "node measure --json"},
		{Name: "node explain", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: nodeExplain,
			Help: "this boot in plain words, checked against the TPM", Example: "node explain",
			More: "Each register from 0 to 15 is compared with the firmware's log of this boot and with the policy that opened the data volume; what does not fit is also told by status. " +
				"The log's texts are the firmware's own."},
		{Name: "node identity", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: nodeIdentity,
			Help: "the TPM's endorsement key and the attestation key, a file", Example: "node identity > node1.identity.json",
			More: "The file is for mkimage enroll on your workstation, which makes the challenge for node activate. Nothing in it is secret, and nothing in it is proved yet."},
		{Name: "node activate", Role: operator, Doors: loggedIn, Risk: Changes, Run: nodeActivate,
			Stdin: "the challenge that mkimage enroll made",
			Help:  "answer it: proves which TPM holds the attestation key", Example: "node activate < node1.challenge.json > node1.answer.json",
			More: "Only the TPM with the endorsement key of the challenge can open it, and only if it holds the attestation key. mkimage enroll --answer checks and records that."},
		{Name: "node quote", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: nodeQuote, Params: []Param{place("nonce", Word, "8 to 32 bytes of your own, in hex")},
			Help: "PCR 0 to 15 signed by the TPM over your nonce, a file", Example: "node quote 00112233445566778899aabbccddeeff > node1.quote.json",
			More: "Check it on your workstation: mkimage verify-quote node1.quote.json --nonce NONCE --ak node1.ak.json --image DIR. Take a fresh random nonce each time: openssl rand -hex 16."},
		{Name: "reboot", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: power("reboot"),
			Help: "restart this machine", Example: "reboot"},
		{Name: "poweroff", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: power("off"),
			Help: "switch this machine off", Example: "poweroff"},
	}
}

func adminVerbs() []Verb {
	name := place("name", Word, "the administrator's login name")
	return []Verb{
		{Name: "admin list", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: adminList,
			Help: "administrators, roles and key fingerprints", Example: "admin list"},
		{Name: "admin add", Role: owner, Doors: loggedIn, Risk: Changes, Run: adminAdd,
			Params: []Param{name, {Name: "role", Kind: Choice, Choices: []string{"owner", "operator", "reviewer"}}},
			Stdin:  "one SSH public key, as in id_ed25519.pub",
			Help:   "enrol an administrator", Example: "admin add grace operator < id_ed25519.pub"},
		{Name: "admin remove", Role: owner, Doors: loggedIn, Risk: Disrupts, Run: adminRemove, Params: []Param{name},
			Help: "remove an administrator", Example: "admin remove grace"},
		{Name: "passphrase set", Role: reviewer, Doors: []policy.Door{policy.DoorSerial}, Risk: Changes, Dialogue: passphraseDialogue,
			Help: "set your own passphrase for the serial line", Example: "passphrase set"},
	}
}

func auditVerbs() []Verb {
	lines := flag("lines", Number, "how many")
	service := Param{Name: "service", Kind: Word, Optional: true, Help: "only this service; see status for names"}
	return []Verb{
		{Name: "audit tail", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: auditTail, Params: []Param{lines},
			Help: "the newest audit entries", Example: "audit tail --lines 20",
			Replaces: []string{"Get-HgsAttestationReport"}},
		{Name: "audit verify", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: auditVerify,
			Help: "check this node's audit chain", Example: "audit verify"},
		{Name: "audit key", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: auditKey,
			Help: "the key that signs this node's audit, and those before it", Example: "audit key --json",
			More: "The key lies in the TPM. Note its fingerprint now, on paper or elsewhere: it is what an export is proved against, with hostsim audit verify --key. " +
				"A key that changed although nobody cleared or replaced the TPM means that somebody did."},
		{Name: "audit syslog set", Role: owner, Doors: onlySSH, Risk: Changes, Run: syslogSet,
			Params: []Param{place("address", Text, "HOST:PORT; 6514 is the usual port"), flag("name", Text, "the name in the collector's certificate, where it is not HOST")},
			Stdin:  "the PEM certificates of the CAs that the collector's certificate may come from",
			Help:   "send every node's audit to a syslog collector, over TLS only", Example: "audit syslog set siem.example.com:6514 < ca.pem",
			More: "RFC 5424 messages over TLS (RFC 5425). Each record is sent at least once, from the oldest one that the node keeps; hosts never wait for the collector. " +
				"Records have numbers and hashes, so the collector can tell repeated and missing ones. Trust nothing but the CAs given here."},
		{Name: "audit syslog show", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: syslogShow,
			Help: "where the audit is sent, and how far it has got", Example: "audit syslog show"},
		{Name: "audit syslog test", Role: operator, Doors: loggedIn, Risk: Reads, Run: syslogTest,
			Help: "send one test message to the collector, from this node", Example: "audit syslog test"},
		{Name: "audit syslog csr", Role: owner, Doors: loggedIn, Risk: Changes, Run: syslogCSR,
			Params: []Param{flag("key", Choice, "default new (P-256)", rpc.HTTPSKeyNew, rpc.HTTPSKeyNewRSA, rpc.HTTPSKeyCurrent)},
			Help:   "request a client certificate for the collector", Example: "audit syslog csr > node1.csr",
			More: "For collectors that ask who sends (mutual TLS). The key is made on the node and never leaves it; each node has its own. What is shown does not change " +
				"before audit syslog install."},
		{Name: "audit syslog install", Role: owner, Doors: loggedIn, Risk: Changes, Run: syslogInstall,
			Stdin: "the issued certificate and its chain: PEM, DER or PKCS#7",
			Help:  "show the collector this client certificate", Example: "audit syslog install < node1.pem",
			More: "It must be for client authentication, and for the key of a request of audit syslog csr. The connection is made anew at once."},
		{Name: "audit syslog uninstall", Role: owner, Doors: loggedIn, Risk: Disrupts, Run: syslogUninstall,
			Help: "show it no client certificate any more", Example: "audit syslog uninstall"},
		{Name: "audit syslog off", Role: owner, Doors: loggedIn, Risk: Disrupts, Run: syslogOff,
			Help: "send the audit nowhere any more", Example: "audit syslog off"},
		{Name: "audit export", Role: reviewer, Doors: onlySSH, Risk: Reads, Run: auditExport,
			Params: []Param{flag("from", Number, "first entry"), flag("to", Number, "last entry")},
			Help:   "the audit chain as a file on standard output", Example: "audit export > audit.export"},
		{Name: "audit trim", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: auditTrim,
			Params: []Param{place("below", Number, "drop exported segments that end below this entry")},
			Help:   "make room: drop exported parts of the audit", Example: "audit trim 20000"},
		{Name: "log show", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: logShow(false),
			Params: []Param{service, flag("boot", Choice, "0 this boot, -1 and -2 the ones before", "0", "-1", "-2"), lines},
			Help:   "log lines of the services and the kernel", Example: "log show hgs --boot -1",
			Replaces: []string{"Get-HgsTrace"}},
		{Name: "log follow", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: logShow(true), Params: []Param{service, lines},
			Help: "log lines as they come", Example: "log follow hgs"},
	}
}
