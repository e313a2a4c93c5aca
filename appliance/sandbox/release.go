package sandbox

import (
	"bufio"
	"os"
	"strconv"
	"strings"
)

// ReleaseFile is written by images when the image is built.
const ReleaseFile = "/etc/os-release"

// ReleaseInfo is what the image says of itself. BuildEpoch is unix seconds; 0 outside an image. Number rises with each release.
// Evaluation: signed with keys for trying out, which every screen must say.
type ReleaseInfo struct {
	Version    string
	BuildEpoch int64
	Number     uint64
	Evaluation bool
}

// Release reads ReleaseFile; fields it can't find are zero ("unknown" for the version), because a missing file must not stop a service.
func Release() ReleaseInfo {
	r := ReleaseInfo{Version: "unknown"}
	f, err := os.Open(ReleaseFile)
	if err != nil {
		return r
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		name, value, _ := strings.Cut(s.Text(), "=")
		value = strings.Trim(value, `"`)
		switch name {
		case "VERSION_ID":
			r.Version = value
		case "BUILD_EPOCH":
			r.BuildEpoch, _ = strconv.ParseInt(value, 10, 64)
		case "RELEASE_NUMBER":
			r.Number, _ = strconv.ParseUint(value, 10, 64)
		case "EVALUATION":
			r.Evaluation = value == "yes"
		}
	}
	return r
}
