package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// startDriver compiles a small program that calls the library over and over, and prints
// a line for each round.
func startDriver(source string) func(context.Context, *process) error {
	return func(ctx context.Context, p *process) error {
		driver := filepath.Join(p.dir, "driver")
		if err := command(ctx, ".", nil, "gcc", "-O2", "-Wall", "-Werror", "-o", driver, filepath.Join("testdata", "cve", source), p.image, "-Wl,-rpath,"+p.dir); err != nil {
			return err
		}
		args, err := arguments(ctx, p, source)
		if err != nil {
			return err
		}
		return p.run(ctx, driver, args...)
	}
}

// arguments of a driver: the video that the decoder's decodes.
func arguments(ctx context.Context, p *process, source string) ([]string, error) {
	if source != "libde265.c" {
		return nil, nil
	}
	raw, video := filepath.Join(p.dir, "raw.yuv"), filepath.Join(p.dir, "video.265")
	if err := os.WriteFile(raw, pictures(12, 128, 64), 0o644); err != nil {
		return nil, err
	}
	return []string{video}, command(ctx, p.dir, nil, "x265", "--input", raw, "--input-res", "128x64", "--fps", "25", "--frames", "12", "--ref", "4", "--bframes", "2", "--output", video)
}

// pictures are frames of something that moves, in YUV 4:2:0.
func pictures(frames, width, height int) []byte {
	var b []byte
	for f := range frames {
		for y := range height {
			for x := range width {
				b = append(b, byte((x+3*f)*(y+f)/3+x*x/(y+1)))
			}
		}
		for i := range width * height / 2 {
			b = append(b, byte(128+(i+f)%9))
		}
	}
	return b
}

// driverAnswer is the next whole line that the driver prints: of a round that began after
// the question.
func driverAnswer(ctx context.Context, p *process) (string, error) {
	lines := func() []string {
		text, _ := os.ReadFile(p.log.Name())
		all := strings.Split(string(text), "\n")
		return all[:len(all)-1]
	}
	for begin := len(lines()); ; {
		if now := lines(); len(now) >= begin+2 {
			return now[len(now)-1], nil
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("the driver prints nothing")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// box is an atom of an MP4 file (ISO/IEC 14496-12).
func box(kind string, parts ...any) []byte {
	body := []byte(kind)
	for _, part := range parts {
		switch v := part.(type) {
		case []byte:
			body = append(body, v...)
		case int:
			body = binary.BigEndian.AppendUint32(body, uint32(v))
		}
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body)+4)), body...)
}

// movie is an MP4 file of ten samples of a second each, in chunks of three.
func movie() []byte {
	const samples, size = 10, 16
	zeros := func(n int) []byte { return make([]byte, n) }
	track := func(offset int) []byte {
		stbl := box("stbl",
			box("stsd", 0, 1, box("avc1", zeros(78))),
			box("stts", 0, 1, samples, 1000),
			box("stsc", 0, 2, 1, 3, 1, 4, 1, 1),
			box("stsz", 0, size, samples),
			box("stco", 0, 4, offset, offset+3*size, offset+6*size, offset+9*size))
		return box("moov",
			box("mvhd", 0, 0, 0, 1000, samples*1000, zeros(80)),
			box("trak",
				box("tkhd", 0, 0, 0, 1, 0, samples*1000, zeros(60)),
				box("mdia",
					box("mdhd", 0, 0, 0, 1000, samples*1000, 0),
					box("hdlr", 0, 0, []byte("vide"), zeros(13)),
					box("minf", box("vmhd", 0, 0, 0), box("dinf", zeros(8)), stbl))))
	}
	head := box("ftyp", []byte("isom"), 0, []byte("isom"))
	offset := len(head) + len(track(0)) + 8
	file := append(head, track(offset)...)
	return append(file, box("mdat", zeros(samples*size))...)
}
