package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// scenarios by the name that fixes.tsv gives them.
var scenarios = map[string]scenario{
	"redis-output":      {startRedis, redisOutput},
	"redis-eval":        {startRedis, redisEval},
	"redis-accept":      {startRedis, redisEval}, // a connection of its own
	"haproxy-length":    {startHAProxy, haproxyLength},
	"mosquitto-publish": {startMosquitto, mosquittoPublish},
	"mosquitto-store":   {startMosquitto, mosquittoStore},
	"dnsmasq-forward":   {startDnsmasq, dnsmasqForward},
	"tinyproxy-request": {startTinyproxy, tinyproxyRequest},
	"memcached-proxy":   {startMemcached, memcachedProxy},
	"nginx-tls":         {startNginx, nginxTLS},
	"nginx-mail":        {startNginx, nginxMail},
	"nginx-mp4":         {startNginx, nginxMP4},
	"nginx-charset":     {startNginx, nginxCharset},
	"expat-negative":    {startDriver("expat.c"), driverAnswer},
	"libde265-decode":   {startDriver("libde265.c"), driverAnswer},
}

// dial connects to the process; all of a conversation takes 20 seconds at most.
func dial(port string) (net.Conn, error) {
	c, err := net.DialTimeout("tcp", "127.0.0.1:"+port, 10*time.Second)
	if err == nil {
		err = c.SetDeadline(time.Now().Add(20 * time.Second))
	}
	return c, err
}

// line sends a request and gives the first line of the answer.
func line(port, request string) (string, error) {
	c, err := dial(port)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := io.WriteString(c, request); err != nil {
		return "", err
	}
	text, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(text), err
}

func startRedis(ctx context.Context, p *process) error {
	err := p.run(ctx, p.image, "--bind", "127.0.0.1", "--port", p.port, "--save", "", "--appendonly", "no", "--requirepass", "secret")
	return errors.Join(err, p.listens(ctx, p.port))
}

// redisOutput sends commands without a password and does not read the replies: how that
// ends says whether the buffer of a client without a password is limited (CVE-2025-21605).
func redisOutput(_ context.Context, p *process) (string, error) {
	c, err := dial(p.port)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return "", err
	}
	block := []byte(strings.Repeat("GET x\r\n", 1000))
	for range 600 {
		if _, err := c.Write(block); err != nil {
			if ok, err := line(p.port, "AUTH secret\r\n"); ok != "+OK" {
				return "", fmt.Errorf("it serves others no more: %q %w", ok, err)
			}
			return "disconnected", nil
		}
	}
	return "connected", nil
}

// redisEval has a script compiled that is new each time.
func redisEval(_ context.Context, p *process) (string, error) {
	c, err := dial(p.port)
	if err != nil {
		return "", err
	}
	defer c.Close()
	r := bufio.NewReader(c)
	var text string
	for _, command := range []string{"AUTH secret", fmt.Sprintf("EVAL \"return 40+2 -- %d\" 0", time.Now().UnixNano())} {
		if _, err := io.WriteString(c, command+"\r\n"); err != nil {
			return "", err
		}
		if text, err = r.ReadString('\n'); err != nil {
			return "", err
		}
	}
	return strings.TrimSpace(text), nil
}

func startHAProxy(ctx context.Context, p *process) error {
	err := p.write("cfg", "defaults\n mode http\n timeout client 20s\n timeout connect 5s\n timeout server 20s\n"+
		"frontend f\n bind 127.0.0.1:"+p.port+"\n http-request return status 200 content-type text/plain string ok\n")
	return errors.Join(err, p.run(ctx, p.image, "-db", "-f", "cfg"), p.listens(ctx, p.port))
}

// haproxyLength sends an empty content-length, and an ordinary request.
func haproxyLength(_ context.Context, p *process) (string, error) {
	status := func(header string) (string, error) {
		text, err := line(p.port, "GET / HTTP/1.1\r\nHost: a\r\n"+header+"\r\n")
		if f := strings.Fields(text); len(f) > 1 {
			return f[1], nil
		}
		return "", fmt.Errorf("%q: %w", text, err)
	}
	empty, err := status("Content-Length:\r\n")
	if err != nil {
		return "", err
	}
	if good, err := status(""); good != "200" {
		return "", fmt.Errorf("an ordinary request has status %q %w", good, err)
	}
	return empty, nil
}

func startMosquitto(ctx context.Context, p *process) error {
	err := p.write("conf", "listener "+p.port+" 127.0.0.1\nallow_anonymous true\nuser root\n")
	return errors.Join(err, p.run(ctx, p.image, "-c", "conf"), p.listens(ctx, p.port))
}

// mosquittoPublish begins with a PUBLISH that announces 16 KiB: is it waited for
// (CVE-2023-0809)? A CONNECT must be answered as always.
func mosquittoPublish(_ context.Context, p *process) (string, error) {
	c, err := dial(p.port)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := c.Write([]byte{0x30, 0x80, 0x80, 0x01, 0, 1}); err != nil {
		return "", err
	}
	if err := c.SetReadDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return "", err
	}
	_, err = c.Read(make([]byte, 1))
	answer := "closed"
	if errors.Is(err, os.ErrDeadlineExceeded) {
		answer = "kept"
	}
	good, err := dial(p.port)
	if err != nil {
		return "", err
	}
	defer good.Close()
	if _, err := good.Write([]byte("\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a")); err != nil {
		return "", err
	}
	ack := make([]byte, 4)
	if _, err := io.ReadFull(good, ack); err != nil || ack[0] != 0x20 || ack[3] != 0 {
		return "", fmt.Errorf("CONNECT is answered with %x (%w)", ack, err)
	}
	return answer, nil
}

// mosquittoStore publishes a message of QoS 2, which the broker stores until the client
// releases it, twice (CVE-2023-28366), and gives what it is answered.
func mosquittoStore(_ context.Context, p *process) (string, error) {
	c, err := dial(p.port)
	if err != nil {
		return "", err
	}
	defer c.Close()
	text := ""
	for _, packet := range []struct {
		send string
		size int
	}{
		{"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01b", 4},
		{"\x34\x06\x00\x01t\x00\x07x", 4},
		{"\x3c\x06\x00\x01t\x00\x07x", 4},
		{"\x62\x02\x00\x07", 4},
	} {
		if _, err := c.Write([]byte(packet.send)); err != nil {
			return "", err
		}
		answer := make([]byte, packet.size)
		if _, err := io.ReadFull(c, answer); err != nil {
			return "", fmt.Errorf("%x is answered with %x (%w)", packet.send, answer, err)
		}
		text += fmt.Sprintf("%x ", answer[0])
	}
	return strings.TrimSpace(text), nil
}

// startDnsmasq starts two: one that forwards, and one that answers.
func startDnsmasq(ctx context.Context, p *process) error {
	common := []string{"--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--listen-address=127.0.0.1", "--bind-interfaces", "--user=root", "--cache-size=0"}
	err := p.run(ctx, p.image, append(common, "--pid-file="+filepath.Join(p.dir, "pid"), "--port="+p.port, "--server=127.0.0.1#"+p.ports[1])...)
	err = errors.Join(err, p.run(ctx, p.image, append(common, "--pid-file="+filepath.Join(p.dir, "pid2"), "--port="+p.ports[1], "--address=/example.test/192.0.2.7")...))
	return errors.Join(err, p.listens(ctx, p.port, p.ports[1]))
}

// dnsmasqForward asks for an address that the other server has.
func dnsmasqForward(_ context.Context, p *process) (string, error) {
	c, err := net.Dial("udp", "127.0.0.1:"+p.port)
	if err != nil {
		return "", err
	}
	defer c.Close()
	question := append([]byte{1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}, "\x03www\x07example\x04test\x00\x00\x01\x00\x01"...)
	answer := make([]byte, 512)
	for range 20 {
		if _, err = c.Write(question); err != nil {
			return "", err
		}
		if err = c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return "", err
		}
		var n int
		if n, err = c.Read(answer); err == nil && n > 12 && binary.BigEndian.Uint16(answer[6:]) == 1 {
			return net.IP(answer[n-4 : n]).String(), nil
		}
	}
	return "", fmt.Errorf("no answer: %w", err)
}

// startTinyproxy starts the proxy; the web server behind it is this program's.
func startTinyproxy(ctx context.Context, p *process) error {
	if err := serveHTTP(ctx, p.ports[1]); err != nil {
		return err
	}
	err := p.write("conf", "Port "+p.port+"\nListen 127.0.0.1\nTimeout 60\nMaxClients 10\n")
	return errors.Join(err, p.run(ctx, p.image, "-d", "-c", "conf"), p.listens(ctx, p.port))
}

// tinyproxyRequest names a header in Connection, which is taken out of what is passed on.
func tinyproxyRequest(_ context.Context, p *process) (string, error) {
	return line(p.port, "GET http://127.0.0.1:"+p.ports[1]+"/ HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: x-one\r\nX-One: 1\r\n\r\n")
}

// serveHTTP answers every request with status 200 and the words "Auth-Status: no".
func serveHTTP(ctx context.Context, port string) error {
	l, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				r := bufio.NewReader(c)
				for {
					text, err := r.ReadString('\n')
					if err != nil {
						return
					}
					if strings.TrimSpace(text) == "" {
						break
					}
				}
				io.WriteString(c, "HTTP/1.0 200 OK\r\nAuth-Status: no\r\nContent-Length: 0\r\n\r\n")
			}()
		}
	}()
	return nil
}

// startMemcached starts a proxy and the server behind it, which are of the same image.
func startMemcached(ctx context.Context, p *process) error {
	err := p.write("proxy.lua", `function mcp_config_pools(old)
  return mcp.pool({mcp.backend('b1', '127.0.0.1', `+p.ports[1]+`)})
end
function mcp_config_routes(pool)
  mcp.attach(mcp.CMD_ANY_STORAGE, function(r) return pool(r) end)
end
`)
	err = errors.Join(err, p.run(ctx, p.image, "-u", "root", "-U", "0", "-l", "127.0.0.1", "-p", p.port, "-o", "proxy_config="+filepath.Join(p.dir, "proxy.lua")))
	err = errors.Join(err, p.run(ctx, p.image, "-u", "root", "-U", "0", "-l", "127.0.0.1", "-p", p.ports[1]))
	if err = errors.Join(err, p.listens(ctx, p.port, p.ports[1])); err != nil {
		return err
	}
	// The proxy has looked for the server too early, and tries again after some seconds.
	answer := ""
	for end := time.Now().Add(20 * time.Second); answer != "STORED" && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		answer, err = memcachedProxy(ctx, p)
	}
	return err
}

func memcachedProxy(_ context.Context, p *process) (string, error) {
	return line(p.port, "set a 0 0 1\r\nb\r\n")
}

// startNginx serves all that the scenarios ask for, in one process.
func startNginx(ctx context.Context, p *process) error {
	openssl := exec.CommandContext(ctx, "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "cert.pem", "-days", "2")
	openssl.Dir = p.dir
	if out, err := openssl.CombinedOutput(); err != nil {
		return fmt.Errorf("openssl: %w\n%s", err, out)
	}
	if err := serveHTTP(ctx, p.ports[3]); err != nil {
		return err
	}
	for _, dir := range []string{"html", "logs"} {
		if err := os.MkdirAll(filepath.Join(p.dir, dir), 0o755); err != nil {
			return err
		}
	}
	err := errors.Join(p.write("html/a.html", "<p>äöü</p>\n"), os.WriteFile(filepath.Join(p.dir, "html", "a.mp4"), movie(), 0o644))
	err = errors.Join(err, p.write("conf", `daemon off; master_process off; user root; pid pid; error_log stderr;
events { }
http {
  access_log off;
  types { text/html html; video/mp4 mp4; }
  client_body_temp_path tmp1; proxy_temp_path tmp2; fastcgi_temp_path tmp3; uwsgi_temp_path tmp4; scgi_temp_path tmp5;
  charset_map iso-8859-1 utf-8 { E4 C3A4; F6 C3B6; FC C3BC; }
  server {
    listen 127.0.0.1:`+p.port+`; root html;
    location /a.mp4 { mp4; }
    location /a.html { charset iso-8859-1; source_charset utf-8; }
  }
  server { listen 127.0.0.1:`+p.ports[1]+` ssl; server_name one.test; ssl_certificate cert.pem; ssl_certificate_key key.pem; root html; }
}
mail {
  auth_http 127.0.0.1:`+p.ports[3]+`/;
  server { listen 127.0.0.1:`+p.ports[2]+`; protocol imap; }
}
`))
	err = errors.Join(err, p.run(ctx, p.image, "-p", p.dir, "-c", filepath.Join(p.dir, "conf")))
	return errors.Join(err, p.listens(ctx, p.port, p.ports[1], p.ports[2]))
}

// nginxTLS names a server in the handshake.
func nginxTLS(_ context.Context, p *process) (string, error) {
	c, err := dial(p.ports[1])
	if err != nil {
		return "", err
	}
	defer c.Close()
	// The certificate was made a moment ago and says nothing.
	t := tls.Client(c, &tls.Config{ServerName: "one.test", InsecureSkipVerify: true})
	if _, err := io.WriteString(t, "GET /a.html HTTP/1.0\r\nHost: one.test\r\n\r\n"); err != nil {
		return "", err
	}
	text, err := bufio.NewReader(t).ReadString('\n')
	return strings.TrimSpace(text), err
}

// nginxMail has a password checked by HTTP, which says no.
func nginxMail(_ context.Context, p *process) (string, error) {
	c, err := dial(p.ports[2])
	if err != nil {
		return "", err
	}
	defer c.Close()
	r := bufio.NewReader(c)
	if _, err := r.ReadString('\n'); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, "a LOGIN one two\r\n"); err != nil {
		return "", err
	}
	text, err := r.ReadString('\n')
	return strings.TrimSpace(text), err
}

// nginxMP4 asks for a movie from a time on, so that its tables are cut.
func nginxMP4(_ context.Context, p *process) (string, error) {
	return line(p.port, "GET /a.mp4?start=2.5 HTTP/1.0\r\nHost: a\r\n\r\n")
}

// nginxCharset asks for a file that is recoded from UTF-8.
func nginxCharset(_ context.Context, p *process) (string, error) {
	c, err := dial(p.port)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /a.html HTTP/1.0\r\nHost: a\r\n\r\n"); err != nil {
		return "", err
	}
	text, err := io.ReadAll(c)
	_, body, _ := strings.Cut(string(text), "\r\n\r\n")
	return fmt.Sprintf("%q", strings.TrimSpace(body)), err
}
