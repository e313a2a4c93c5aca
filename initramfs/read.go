package initramfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/mkuimage/cpio"
)

// maxArchive bounds what an archive may unpack to, in bytes.
const maxArchive = 512 << 20

// ReadFile takes one regular file out of an archive that WriteCPIO and Compress made: for checking a finished image. name is absolute.
func ReadFile(compressed []byte, name string) ([]byte, error) {
	z, err := zstd.NewReader(bytes.NewReader(compressed), zstd.WithDecoderMaxMemory(maxArchive))
	if err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	defer z.Close()
	raw, err := io.ReadAll(io.LimitReader(z, maxArchive))
	if err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	for records := cpio.Newc.Reader(bytes.NewReader(raw)); ; {
		r, err := records.ReadRecord()
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("archive: %s: %w", name, fs.ErrNotExist)
		}
		if err != nil {
			return nil, fmt.Errorf("archive: %w", err)
		}
		if r.Name != strings.TrimPrefix(name, "/") {
			continue
		}
		if r.Mode&cpio.S_IFMT != cpio.S_IFREG {
			return nil, fmt.Errorf("archive: %s is no file", name)
		}
		return io.ReadAll(io.NewSectionReader(r, 0, int64(r.FileSize)))
	}
}
