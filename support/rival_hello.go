// The two routes of the comparison, in Go's own HTTP server: "/wait" answers after 100 ms, all others at once.
package main

import (
	"encoding/json"
	"log"
	"net"
	"net/http"
	"runtime"
	"time"
)

func main() {
	runtime.GOMAXPROCS(1) // one core, as the other servers have
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	handler := func(response http.ResponseWriter, request *http.Request) {
		if request.URL.Path == "/wait" {
			time.Sleep(100 * time.Millisecond)
		}
		response.Header().Set("Content-Type", "application/json")
		json.NewEncoder(response).Encode(map[string]string{"message": "hello"})
	}
	log.Fatal(http.Serve(listener, http.HandlerFunc(handler)))
}
