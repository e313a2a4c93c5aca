package verb

import "strings"

// CmdletAnswer is what help says of a Microsoft cmdlet: our verbs, or one sentence on why there is none.
type CmdletAnswer struct {
	Cmdlet string   `json:"cmdlet"`
	Verbs  []string `json:"verbs,omitempty"`
	Why    string   `json:"why,omitempty"`
}

// Reasons that several cmdlets share.
const (
	noForest   = "Not needed: there is no Active Directory forest, no IIS, no failover cluster and no gMSA here; a node is set up once on the serial line."
	hostSide   = "Runs on the guarded host, unchanged: this service answers it as Microsoft's does."
	tenantSide = "Runs at the tenant or virtual machine's owner, unchanged: it needs only the guardian that `metadata` names."
	fabricSide = "Belongs to the fabric's and template tools, which this service does not change."
	adMode     = "Belongs to Active Directory mode, which this version does not evaluate: register hosts by their host key with `host add`."
	backup     = "This version has no backup verb yet: keep the answer file, the HSM's own backup and `audit export`."
	traceSide  = "Not needed: no trace target is contacted, because the node itself says in `status` and `log show` what is wrong."
)

// without is every cmdlet that no verb replaces. Those that a verb replaces stand in the table, in Replaces.
var without = map[string]string{
	"Add-AccessRule":                        "Not needed: private keys stay in the HSM and only one process may use them, so there is no access list to set; `key test` proves that each key works.",
	"Add-DnsServerConditionalForwarderZone": "Runs on your own DNS server: a plain address record of the service name is enough, because there is no HGS forest.",
	"Copy-Item":                             "Not needed: files come on standard input of a verb, as in `ssh node host add hv7 < hv7.cer`.",
	"Out-File":                              "Runs on the host when you save a file; text with a byte order mark or in UTF-16 is accepted by `host add`.",
	"Get-IISAppPool":                        "Not needed: there is no IIS; `status` shows the processes.",
	"Get-CimInstance":                       hostSide,
	"Install-ADServiceAccount":              noForest,
	"Uninstall-HgsServer":                   "Not needed: there is no domain controller to demote; switch the node off with `poweroff` and wipe its disk.",
	"Clear-HgsServer":                       "Not needed: there is no failover cluster to leave; a node that is switched off with `poweroff` serves nobody.",
	"Set-HgsServerVersion":                  "Not needed: both functional levels, v1 and v2, are always served.",
	"Initialize-HgsAttestation":             "Not a separate step: run `setup` with key-protection = false under [service] of the answer file; then `key new` makes only the attestation signer.",

	"Get-HgsClientConfiguration":  hostSide + " The line that points a host here is printed by `metadata`.",
	"Set-HgsClientConfiguration":  hostSide + " The exact line is printed by `metadata`.",
	"Test-HgsClientConfiguration": hostSide,
	"Get-HgsClientHostKey":        hostSide + " It exports the file that `host add` takes.",
	"Set-HgsClientHostKey":        hostSide,
	"Remove-HgsClientHostKey":     hostSide,
	"Get-Tpm":                     hostSide,
	"Initialize-Tpm":              hostSide,

	"Get-PlatformIdentifier":           hostSide + " It writes the file that `host add-tpm` takes; run it elevated, else the certificate is missing.",
	"Get-HgsAttestationBaselinePolicy": hostSide + " It writes the boot log that `baseline add` takes.",
	"New-CIPolicy":                     hostSide + " `ci-policy add` takes the binary policy.",
	"ConvertFrom-CIPolicy":             hostSide + " `ci-policy add` takes the binary policy.",
	"Set-RuleOption":                   hostSide + " `ci-policy add` takes the binary policy.",
	"Add-HgsAttestationHostGroup":      adMode,
	"Get-HgsAttestationHostGroup":      adMode,
	"Remove-HgsAttestationHostGroup":   adMode,

	"Export-HgsServerState":        backup,
	"Import-HgsServerState":        backup,
	"Export-HgsKeyProtectionState": backup,
	"Import-HgsKeyProtectionState": backup,
	"New-HgsTraceTarget":           traceSide,
	"Test-HgsTraceTarget":          traceSide,
	"Get-HgsTraceFileData":         traceSide,

	"New-HgsGuardian":              tenantSide,
	"Import-HgsGuardian":           tenantSide,
	"Export-HgsGuardian":           tenantSide,
	"Get-HgsGuardian":              tenantSide,
	"Remove-HgsGuardian":           tenantSide,
	"New-HgsKeyProtector":          tenantSide,
	"Grant-HgsKeyProtectorAccess":  tenantSide,
	"Revoke-HgsKeyProtectorAccess": tenantSide,
	"Get-VMKeyProtector":           tenantSide,
	"Set-VMKeyProtector":           tenantSide,
	"Get-SCGuardianConfiguration":  "Runs in Virtual Machine Manager, unchanged: it reads the same metadata that `metadata` names.",

	"ConvertTo-ShieldedVM":                  fabricSide,
	"Get-KeyProtectorFromShieldingDataFile": fabricSide,
	"Get-ShieldedVMProvisioningStatus":      fabricSide,
	"Import-ShieldingDataFile":              fabricSide,
	"Initialize-ShieldedVM":                 fabricSide,
	"Initialize-VMShieldingHelperVHD":       fabricSide,
	"New-ShieldingDataFile":                 fabricSide,
	"Protect-TemplateDisk":                  fabricSide,
	"Save-ShieldedVMRecoveryKey":            fabricSide,
	"Save-VolumeSignatureCatalog":           fabricSide,
	"Test-ShieldingDataApplicability":       fabricSide,
	"Unprotect-ShieldedVMRecoveryKey":       fabricSide,
}

// Cmdlet answers for a Microsoft cmdlet in any case; ok is false for one that is not known.
func Cmdlet(name string) (answer CmdletAnswer, ok bool) {
	for _, v := range All() {
		for _, r := range v.Replaces {
			if strings.EqualFold(r, name) {
				answer.Cmdlet = r
				answer.Verbs = append(answer.Verbs, v.Name)
			}
		}
	}
	if len(answer.Verbs) > 0 {
		return answer, true
	}
	for known, why := range without {
		if strings.EqualFold(known, name) {
			return CmdletAnswer{Cmdlet: known, Why: why}, true
		}
	}
	return CmdletAnswer{}, false
}
