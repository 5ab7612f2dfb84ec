// Command interop calls and serves as any Go program does that uses grpc-go and etcd's client. The integration tests
// run it; it prints one JSON object a line. See tests/it/interop/go.rs.
package main

import (
	"encoding/json"
	"flag"
	"io"
	"log"
	"os"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) < 2 {
		log.Fatal("usage: interop resolve|walk|serve [flags]")
	}
	commands := map[string]func(*flag.FlagSet, []string) error{
		"resolve": resolve,
		"walk":    walk,
		"serve":   serve,
	}
	command, ok := commands[os.Args[1]]
	if !ok {
		log.Fatalf("no such command: %s", os.Args[1])
	}
	if err := command(flag.NewFlagSet(os.Args[1], flag.ExitOnError), os.Args[2:]); err != nil {
		log.Fatal(err)
	}
}

// say prints a line of JSON.
func say(value any) error {
	return json.NewEncoder(os.Stdout).Encode(value)
}

// endOfInput closes a channel when standard input has ended.
func endOfInput(ended chan<- struct{}) {
	_, _ = io.Copy(io.Discard, os.Stdin)
	close(ended)
}
