package kps

import "strings"

// MetadataPath and RollPathV2 are the paths a client uses first; a server
// matches them in any case with Match.
const (
	MetadataPath = "/KeyProtection/service/metadata/2014-07/metadata.xml"
	RollPathV2   = "/KeyProtection/service/v2.0/rolltransportkey"
	RollPathV1   = "/KeyProtection/service/v1.0/rolltransportkey"
)

// Operation is what a URL path asks for.
type Operation int

// The operations of [MS-KPS 3.1.5]; OpUnknownVersion is a roll whose version
// segment is not known.
const (
	OpNone Operation = iota
	OpMetadata
	OpRoll
	OpUnknownVersion
)

// Route is a matched path.
type Route struct {
	Operation Operation
	Version   PayloadVersion // of OpRoll
	Segment   string         // the version as it was written, for the log
}

var versionSegments = map[string]PayloadVersion{
	"v1.0": PayloadV1, "1.0": PayloadV1, "v1": PayloadV1, "2014-07": PayloadV1,
	"v2.0": PayloadV2, "2.0": PayloadV2, "v2": PayloadV2,
}

// Match finds the operation of a path without regard to case; one slash at the
// end is tolerated [kps.md 14.1]. The spelling of the version is not
// documented, so several are known.
func Match(path string) Route {
	if len(path) > 256 {
		return Route{}
	}
	p := strings.TrimSuffix(strings.ToLower(path), "/")
	if p == strings.ToLower(MetadataPath) {
		return Route{Operation: OpMetadata}
	}
	rest, ok := strings.CutPrefix(p, "/keyprotection/service/")
	if !ok {
		return Route{}
	}
	segment, last, ok := strings.Cut(rest, "/")
	if !ok || last != "rolltransportkey" || segment == "" {
		return Route{}
	}
	v, ok := versionSegments[segment]
	if !ok {
		return Route{Operation: OpUnknownVersion, Segment: segment}
	}
	return Route{Operation: OpRoll, Version: v, Segment: segment}
}
