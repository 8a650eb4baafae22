package kafka

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// The codecs, as the protocol numbers them.
const (
	codecNone = iota
	codecGzip
	codecSnappy
	codecLZ4
	codecZstd
)

const (
	// gzipMemory is what a reader of gzip takes, its window above all.
	gzipMemory = 64 << 10
	// zstdMemory is what a reader of zstd takes beside its window.
	zstdMemory = 256 << 10
	// zstdMaxWindow is the largest window that zstd's own programs take.
	zstdMaxWindow = 128 << 20
	// keptWindow is the largest with which a reader is kept for another batch.
	keptWindow = 1 << 20
)

// decompress returns a reader that decompresses content bit by bit. It asks for
// the memory that it needs by grow, which may refuse.
func decompress(codec int8, content []byte, grow func(bytes int) error) (io.ReadCloser, error) {
	switch codec {
	case codecNone:
		return io.NopCloser(bytes.NewReader(content)), nil
	case codecGzip:
		if err := grow(gzipMemory); err != nil {
			return nil, err
		}
		return openGzip(content)
	case codecSnappy:
		return &blocks{next: newSnappy(content, grow).next}, nil
	case codecLZ4:
		source, err := newLZ4(content, grow)
		if err != nil {
			return nil, err
		}
		return &blocks{next: source.next}, nil
	case codecZstd:
		return openZstd(content, grow)
	}
	return nil, fmt.Errorf("it has compression codec %d, which this consumer does not know", codec)
}

var gzipReaders, zstdReaders sync.Pool

type gzipReader struct{ *gzip.Reader }

func openGzip(content []byte) (io.ReadCloser, error) {
	kept, _ := gzipReaders.Get().(*gzip.Reader)
	if kept == nil {
		kept = new(gzip.Reader)
	}
	if err := kept.Reset(bytes.NewReader(content)); err != nil {
		return nil, fmt.Errorf("gzip: %w", unexpected(err))
	}
	return gzipReader{kept}, nil
}

func (r gzipReader) Close() error {
	gzipReaders.Put(r.Reader)
	return nil
}

type zstdReader struct {
	*zstd.Decoder
	keep bool
}

func openZstd(content []byte, grow func(int) error) (io.ReadCloser, error) {
	content, window, err := fitWindow(content)
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	if err := grow(window + zstdMemory); err != nil {
		return nil, err
	}
	if window <= keptWindow {
		if kept, ok := zstdReaders.Get().(*zstd.Decoder); ok {
			return &zstdReader{kept, true}, kept.Reset(bytes.NewReader(content))
		}
	}
	made, err := zstd.NewReader(bytes.NewReader(content), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(zstdMaxWindow))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	return &zstdReader{made, window <= keptWindow}, nil
}

func (r *zstdReader) Close() error {
	if r.keep && r.Reset(nil) == nil {
		zstdReaders.Put(r.Decoder)
		return nil
	}
	r.Decoder.Close()
	return nil
}

// fitWindow lowers a frame's window to what its blocks can fill, because the
// decoder takes the memory of the window at once, and encoders declare the same
// one for every batch. It returns what the decoder will take.
func fitWindow(content []byte) ([]byte, int, error) {
	var header zstd.Header
	if err := header.Decode(content); err != nil {
		return nil, 0, err
	}
	if header.Skippable || header.WindowSize > zstdMaxWindow {
		if header.WindowSize > zstdMaxWindow {
			return nil, 0, fmt.Errorf("its window of %d bytes is larger than %d", header.WindowSize, zstdMaxWindow)
		}
		return content, keptWindow, nil
	}
	if header.SingleSegment {
		if header.FrameContentSize > zstdMaxWindow {
			return nil, 0, fmt.Errorf("its window of %d bytes is larger than %d", header.FrameContentSize, zstdMaxWindow)
		}
		return content, windowMemory(int(header.FrameContentSize)), nil //nolint:gosec // bounded above
	}
	size := int64(0)
	const blockMax = 128 << 10
	for rest, last := content[header.HeaderSize:], false; !last; {
		if len(rest) < 3 {
			return nil, 0, errTruncated
		}
		block := int(rest[0]) | int(rest[1])<<8 | int(rest[2])<<16
		last = block&1 != 0
		length := block >> 3
		if block>>1&3 == 1 { // a byte that is repeated
			length = 1
		}
		if len(rest) < 3+length {
			return nil, 0, errTruncated
		}
		rest = rest[3+length:]
		size += blockMax
	}
	window := int64(header.WindowSize) //nolint:gosec // bounded above
	if size >= window {
		return content, windowMemory(int(window)), nil
	}
	// The window's descriptor is the byte behind the magic number and the
	// frame's own descriptor: 2 to the power of 10 and its upper five bits.
	exponent := byte(0)
	for int64(1024)<<exponent < size {
		exponent++
	}
	fitting := bytes.Clone(content)
	fitting[5] = exponent << 3
	return fitting, windowMemory(1024 << exponent), nil
}

// windowMemory is what the decoder allocates for a window.
func windowMemory(window int) int {
	if window < 2<<20 {
		return 2 * max(window, 1024)
	}
	return window + 1<<20
}

// blocks reads what is compressed in blocks, of which one at a time is in
// memory.
type blocks struct {
	// next returns the next block, or io.EOF.
	next func() ([]byte, error)
	rest []byte
}

func (b *blocks) Read(p []byte) (n int, err error) {
	for len(b.rest) == 0 {
		if b.rest, err = b.next(); err != nil {
			return 0, err
		}
	}
	n = copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

func (b *blocks) Close() error { return nil }

// snappyBlocks are those of snappy-java's framing, or a single one without it.
type snappyBlocks struct {
	rest   []byte
	framed bool
	buffer []byte
	grow   func(bytes int) error
}

const snappyHeader = 16

func newSnappy(content []byte, grow func(int) error) *snappyBlocks {
	if len(content) >= snappyHeader && string(content[:8]) == "\x82SNAPPY\x00" {
		return &snappyBlocks{rest: content[snappyHeader:], framed: true, grow: grow}
	}
	return &snappyBlocks{rest: content, grow: grow}
}

func (s *snappyBlocks) next() ([]byte, error) {
	if len(s.rest) == 0 {
		return nil, io.EOF
	}
	block := s.rest
	s.rest = nil
	if s.framed {
		r := reader{rest: block}
		if block = r.nullable(int64(r.int32())); r.err != nil || block == nil {
			return nil, errTruncated
		}
		s.rest = r.rest
	}
	size, err := snappy.DecodedLen(block)
	// No element of the format stands for more than 64 bytes.
	if err != nil || size > 64*len(block) {
		return nil, errors.Join(errors.New("snappy: it is corrupt"), err)
	}
	if len(s.buffer) < size {
		if err := s.grow(size); err != nil {
			return nil, err
		}
		s.buffer = make([]byte, size)
	}
	return snappy.Decode(s.buffer, block)
}

// lz4Blocks are those of a frame. The frame's own checksums are not verified:
// Kafka has another one, and its clients got that of the header wrong in
// format 0.
type lz4Blocks struct {
	rest      []byte
	max       int
	checksums bool
	buffer    []byte
	grow      func(bytes int) error
}

const (
	lz4Magic       = 0x184D2204
	lz4Independent = 1 << 5
	lz4Checksums   = 1 << 4
	lz4Size        = 1 << 3
	lz4Raw         = 1 << 31
	lz4Buffer      = 64 << 10
)

func newLZ4(content []byte, grow func(int) error) (*lz4Blocks, error) {
	if len(content) < 7 || binary.LittleEndian.Uint32(content) != lz4Magic {
		return nil, errors.New("lz4: it is no frame")
	}
	flags, size := content[4], content[5]>>4&7
	if flags>>6 != 1 || size < 4 {
		return nil, fmt.Errorf("lz4: unknown frame %02x %02x", flags, content[5])
	}
	if flags&lz4Independent == 0 {
		return nil, errors.New("lz4: its blocks depend on each other, which Kafka does not allow")
	}
	header := 7
	if flags&lz4Size != 0 {
		header += 8
	}
	if len(content) < header {
		return nil, errTruncated
	}
	return &lz4Blocks{rest: content[header:], max: 1 << (8 + 2*int(size)), checksums: flags&lz4Checksums != 0, grow: grow}, nil
}

func (l *lz4Blocks) next() ([]byte, error) {
	if len(l.rest) == 0 {
		return nil, io.EOF
	}
	if len(l.rest) < 4 {
		return nil, errTruncated
	}
	head := binary.LittleEndian.Uint32(l.rest)
	if head == 0 {
		return nil, io.EOF
	}
	length := int(head &^ lz4Raw)
	end := 4 + length
	if l.checksums {
		end += 4
	}
	if length > l.max || end > len(l.rest) {
		return nil, errTruncated
	}
	block := l.rest[4 : 4+length]
	l.rest = l.rest[end:]
	if head&lz4Raw != 0 {
		return block, nil
	}
	// How large it will be is not written: guess, and double.
	for size := max(len(l.buffer), min(l.max, max(lz4Buffer, 4*length))); ; size = min(2*size, l.max) {
		if len(l.buffer) < size {
			if err := l.grow(size); err != nil {
				return nil, err
			}
			l.buffer = make([]byte, size)
		}
		n, err := lz4.UncompressBlock(block, l.buffer)
		if err == nil {
			return l.buffer[:n], nil
		}
		if size >= l.max {
			return nil, fmt.Errorf("lz4: %w", err)
		}
	}
}
