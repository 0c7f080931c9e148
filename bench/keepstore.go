// A block server that costs what a keepstore costs.
//
// It does what a keepstore does with a block, in the same places and with the same packages of
// Go: GET reads a file 32 KiB at a time in one goroutine, while another hashes and sends 64 KiB
// at a time and keeps the last piece back until the digest is right. PUT receives and hashes
// 32 KiB at a time into a buffer, answers 422 if that isn't what the URL says, then writes a
// temporary file and renames it. A block that is there already is written once more, so that the
// same block can be put again as if it were new. Each request checks or makes a signature, writes
// two lines of JSON to a log, and takes GET or PUT microseconds of processor time for what this
// program leaves out: routing, metrics, limits, several volumes.
//
// It is a measuring device, no Keep service: it refuses no token and no signature, and when
// nothing is asked of it for a while it forgets the oldest blocks that it has no room for. A PUT
// with the header `Bench-Pin: yes` is never forgotten.
//
// keepstore DIRECTORY KIBIBYTES GET PUT serves on a port of 127.0.0.1, with so many KiB of blocks
// in the directory. Prints the port, and ends when its standard input does. GET /counts answers
// "GET n HEAD n PUT n".
package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha1"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

const (
	blockSize = 64 << 20
	piece     = 64 << 10
	idle      = 30 * time.Millisecond
	ttl       = 14 * 24 * 3600
)

var (
	locator           = regexp.MustCompile(`^/([0-9a-f]{32})(\+[0-9]+)?((?:\+[A-Z][-A-Za-z0-9@_]*)*)$`)
	key               = []byte("of the bench")
	errDigest         = errors.New("checksum mismatch")
	gets, heads, puts int64
)

// --- memory -------------------------------------------------------------------

// buffers are the memory of blocks, used again as a keepstore's are.
var buffers = make(chan []byte, 16)

func takeBuffer() []byte {
	select {
	case it := <-buffers:
		return it
	default:
		it := make([]byte, blockSize)
		for at := 0; at < len(it); at += 4096 {
			it[at] = 1 // a page fault costs as much as the transfer
		}
		return it
	}
}

func giveBuffer(it []byte) {
	select {
	case buffers <- it:
	default:
	}
}

// --- the processor --------------------------------------------------------------

// spend uses the processor for some time.
func spend(cost time.Duration) {
	if cost <= 0 {
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for begin := used(); used()-begin < int64(cost); {
	}
}

// used returns the nanoseconds of the processor that this thread has used.
func used() int64 {
	const threadCPUTime = 3
	var it syscall.Timespec
	syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, threadCPUTime, uintptr(unsafe.Pointer(&it)), 0)
	return it.Nano()
}

// --- blocks ---------------------------------------------------------------------

// stored is the file of a block.
type stored struct {
	path string
	size int64
}

// store has the blocks, as files in a directory for each three digits.
type store struct {
	directory string
	room      int64
	mutex     sync.Mutex
	files     []stored // those that may be forgotten, the oldest first
	taken     int64
	again     int
	asked     int64 // when the last request came, or ended
	under     int64 // requests under way
}

func (it *store) path(digest string) string {
	return filepath.Join(it.directory, digest[:3], digest)
}

func (it *store) write(digest string, block []byte, pinned bool) error {
	var disk syscall.Statfs_t
	if err := syscall.Statfs(it.directory, &disk); err != nil {
		return err
	}
	path := it.path(digest)
	if _, err := os.Stat(path); err == nil {
		it.mutex.Lock()
		it.again++
		path = fmt.Sprintf("%s-%d", path, it.again)
		it.mutex.Unlock()
	}
	folder := filepath.Dir(path)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	file, err := os.CreateTemp(folder, "tmp"+digest)
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(block)
	if e := file.Close(); err == nil {
		err = e
	}
	now := time.Now()
	if e := os.Chtimes(file.Name(), now, now); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err == nil && !pinned {
		it.mutex.Lock()
		it.files = append(it.files, stored{path, int64(len(block))})
		it.taken += int64(len(block))
		it.mutex.Unlock()
	}
	return err
}

// forget removes blocks without room while nothing is asked.
func (it *store) forget() {
	for {
		time.Sleep(idle)
		for path := it.oldest(); path != ""; path = it.oldest() {
			os.Remove(path)
		}
	}
}

// oldest takes the oldest block from those without room, if nothing was asked for a while.
func (it *store) oldest() string {
	it.mutex.Lock()
	defer it.mutex.Unlock()
	quiet := time.Duration(time.Now().UnixNano() - atomic.LoadInt64(&it.asked))
	if it.taken <= it.room || len(it.files) == 0 || atomic.LoadInt64(&it.under) != 0 || quiet <= idle {
		return ""
	}
	path := it.files[0].path
	it.taken -= it.files[0].size
	it.files = it.files[1:]
	return path
}

// --- streaming -------------------------------------------------------------------

// stream takes bytes into a buffer; another goroutine passes pieces on to a writer.
type stream struct {
	buffer      []byte
	have, given int
	pieces      chan []byte
	failed      chan error
}

func newStream(to io.Writer, buffer []byte) *stream {
	it := &stream{buffer: buffer, pieces: make(chan []byte, len(buffer)/piece+1), failed: make(chan error, 1)}
	go func() {
		defer close(it.failed)
		for part := range it.pieces {
			if _, err := to.Write(part); err != nil {
				it.failed <- err
				return
			}
		}
	}()
	return it
}

func (it *stream) Write(part []byte) (int, error) {
	count := copy(it.buffer[it.have:], part)
	it.have += count
	for it.have-it.given >= piece {
		it.pieces <- it.buffer[it.given : it.given+piece]
		it.given += piece
	}
	if count < len(part) {
		return count, io.ErrShortWrite
	}
	return count, nil
}

func (it *stream) Close() error {
	if it.given < it.have {
		it.pieces <- it.buffer[it.given:it.have]
	}
	close(it.pieces)
	return <-it.failed
}

// checked passes a block on, the last piece only if its digest is right.
type checked struct {
	to     http.ResponseWriter
	sum    hash.Hash
	digest string
	left   int64
	begun  bool
}

func (it *checked) Write(part []byte) (int, error) {
	if !it.begun {
		it.to.Header().Set("Content-Length", strconv.FormatInt(it.left, 10))
		it.begun = true
	}
	it.sum.Write(part)
	it.left -= int64(len(part))
	if it.left <= 0 && fmt.Sprintf("%x", it.sum.Sum(nil)) != it.digest {
		return 0, errDigest
	}
	return it.to.Write(part)
}

// --- requests --------------------------------------------------------------------

// server answers the requests.
type server struct {
	blocks           *store
	getCost, putCost time.Duration
	log              *json.Encoder
	mutex            sync.Mutex
}

func signature(digest, token string, expiry int64) string {
	sum := hmac.New(sha1.New, key)
	fmt.Fprintf(sum, "%s@%s@%08x@%x", digest, token, expiry, ttl)
	return fmt.Sprintf("%x", sum.Sum(nil))
}

func (it *server) note(fields map[string]any) {
	it.mutex.Lock()
	defer it.mutex.Unlock()
	it.log.Encode(fields)
}

func (it *server) ServeHTTP(answer http.ResponseWriter, request *http.Request) {
	if request.URL.Path == "/counts" {
		fmt.Fprintf(answer, "GET %d HEAD %d PUT %d\n", atomic.LoadInt64(&gets), atomic.LoadInt64(&heads), atomic.LoadInt64(&puts))
		return
	}
	atomic.AddInt64(&it.blocks.under, 1)
	begin := time.Now()
	defer func() {
		atomic.StoreInt64(&it.blocks.asked, time.Now().UnixNano())
		atomic.AddInt64(&it.blocks.under, -1)
	}()
	fields := map[string]any{
		"RequestID": request.Header.Get("X-Request-Id"), "PID": os.Getpid(), "level": "info", "msg": "request",
		"remoteAddr": request.RemoteAddr, "reqForwardedFor": request.Header.Get("X-Forwarded-For"),
		"reqMethod": request.Method, "reqHost": request.Host, "reqPath": request.URL.Path[1:],
		"reqQuery": request.URL.RawQuery, "reqBytes": request.ContentLength, "time": begin,
	}
	it.note(fields)
	header := answer.Header()
	header.Set("Access-Control-Allow-Headers", "Authorization, Content-Length, Content-Type, X-Keep-Desired-Replicas, X-Keep-Signature, X-Keep-Storage-Classes")
	header.Set("Access-Control-Allow-Methods", "GET, HEAD, PUT, OPTIONS")
	header.Set("Access-Control-Allow-Origin", "*")
	header.Set("Access-Control-Expose-Headers", "X-Keep-Locator, X-Keep-Replicas-Stored, X-Keep-Storage-Classes-Confirmed")
	header.Set("Access-Control-Max-Age", "86486400")
	header.Set("X-Request-Id", request.Header.Get("X-Request-Id"))
	pinned := request.Header.Get("Bench-Pin") != ""
	switch {
	case pinned:
	case request.Method == http.MethodPut:
		spend(it.putCost)
	default:
		spend(it.getCost)
	}
	status := it.do(answer, request, pinned)
	fields["msg"], fields["respStatusCode"], fields["respStatus"] = "response", status, http.StatusText(status)
	fields["timeTotal"] = time.Since(begin).Seconds()
	it.note(fields)
}

func (it *server) do(answer http.ResponseWriter, request *http.Request, pinned bool) int {
	match := locator.FindStringSubmatch(request.URL.Path)
	token := strings.TrimPrefix(request.Header.Get("Authorization"), "Bearer ")
	switch {
	case match == nil:
		http.Error(answer, "Bad Request", http.StatusBadRequest)
		return http.StatusBadRequest
	case request.Method == http.MethodPut:
		atomic.AddInt64(&puts, 1)
		return it.put(answer, request, match[1], token, pinned)
	case request.Method == http.MethodHead:
		atomic.AddInt64(&heads, 1)
	default:
		atomic.AddInt64(&gets, 1)
	}
	signature(match[1], token, time.Now().Unix())
	return it.get(answer, request, match[1])
}

func (it *server) get(answer http.ResponseWriter, request *http.Request, digest string) int {
	path := it.blocks.path(digest)
	status, err := os.Stat(path)
	if err != nil {
		http.Error(answer, "Not Found", http.StatusNotFound)
		return http.StatusNotFound
	}
	answer.Header().Set("Vary", "X-Keep-Signature")
	answer.Header().Set("Content-Type", "application/octet-stream")
	if request.Method == http.MethodHead {
		answer.Header().Set("Content-Length", strconv.FormatInt(status.Size(), 10))
		return http.StatusOK
	}
	file, err := os.Open(path)
	if err != nil {
		return failed(answer, err)
	}
	defer file.Close()
	buffer := takeBuffer()
	defer giveBuffer(buffer)
	to := newStream(&checked{to: answer, sum: md5.New(), digest: digest, left: status.Size()}, buffer)
	_, err = io.Copy(struct{ io.Writer }{to}, struct{ io.Reader }{file})
	if e := to.Close(); err == nil {
		err = e
	}
	if err != nil {
		panic(http.ErrAbortHandler) // the connection is cut
	}
	return http.StatusOK
}

func (it *server) put(answer http.ResponseWriter, request *http.Request, digest, token string, pinned bool) int {
	buffer := takeBuffer()
	defer giveBuffer(buffer)
	block, sum := bytes.NewBuffer(buffer[:0]), md5.New()
	_, err := io.Copy(io.MultiWriter(block, sum), io.LimitReader(request.Body, blockSize))
	if err == nil && fmt.Sprintf("%x", sum.Sum(nil)) != digest {
		http.Error(answer, "Checksum mismatch in PUT", http.StatusUnprocessableEntity)
		return http.StatusUnprocessableEntity
	}
	if err == nil {
		err = it.blocks.write(digest, block.Bytes(), pinned)
	}
	if err != nil {
		return failed(answer, err)
	}
	signature(digest, token, time.Now().Unix()+ttl)
	answer.Header().Set("X-Keep-Replicas-Stored", "1")
	answer.Header().Set("X-Keep-Storage-Classes-Confirmed", "default=1")
	fmt.Fprintf(answer, "%s+%d\n", digest, block.Len())
	return http.StatusOK
}

// failed answers a request that the disk refuses, and says so to who runs the bench.
func failed(answer http.ResponseWriter, err error) int {
	fmt.Fprintln(os.Stderr, "keepstore:", err)
	http.Error(answer, err.Error(), http.StatusInternalServerError)
	return http.StatusInternalServerError
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "keepstore:", err)
	os.Exit(1)
}

func number(word string) int64 {
	it, err := strconv.ParseInt(word, 10, 64)
	if err != nil {
		fail(err)
	}
	return it
}

func main() {
	if len(os.Args) != 5 {
		fail(errors.New("DIRECTORY KIBIBYTES GET PUT"))
	}
	directory := os.Args[1]
	log, err := os.Create(filepath.Join(directory, "log"))
	if err != nil {
		fail(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fail(err)
	}
	blocks := &store{directory: directory, room: number(os.Args[2]) << 10}
	handler := &server{
		blocks:  blocks,
		getCost: time.Duration(number(os.Args[3])) * time.Microsecond,
		putCost: time.Duration(number(os.Args[4])) * time.Microsecond,
		log:     json.NewEncoder(log),
	}
	go blocks.forget()
	go func() { fail(http.Serve(listener, handler)) }()
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	io.Copy(io.Discard, os.Stdin)
}
