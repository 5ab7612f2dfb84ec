package main

import (
	"context"
	"flag"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/resolver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// limit is the time for everything that a command does.
const limit = 60 * time.Second

// resolve calls a service that etcd's own resolver finds, and counts who answered: one line of JSON a round.
func resolve(flags *flag.FlagSet, args []string) error {
	etcd := flags.String("etcd", "", "client address of etcd")
	target := flags.String("target", "", "what to dial, etcd:///...")
	authority := flags.String("authority", "", "grpc.WithAuthority; empty for none")
	instances := flags.Int("instances", 0, "wait until so many have answered, then count")
	calls := flags.Int("calls", 300, "calls of a round")
	rounds := flags.Int("rounds", 1, "how many rounds; 0: until standard input ends")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{*etcd}, DialTimeout: 5 * time.Second})
	if err != nil {
		return err
	}
	defer client.Close()
	builder, err := resolver.NewBuilder(client)
	if err != nil {
		return err
	}
	options := []grpc.DialOption{
		grpc.WithResolvers(builder),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`),
	}
	if *authority != "" {
		options = append(options, grpc.WithAuthority(*authority))
	}
	conn, err := grpc.NewClient(*target, options...)
	if err != nil {
		return err
	}
	defer conn.Close()

	// round robin begins with those that are connected first
	for seen := map[string]bool{}; len(seen) < *instances; {
		instance, err := createFeed(ctx, conn)
		if err != nil {
			return fmt.Errorf("%d instances have answered: %w", len(seen), err)
		}
		seen[instance] = true
	}
	ended := make(chan struct{})
	if *rounds == 0 {
		go endOfInput(ended)
	}
	for round := 0; *rounds == 0 || round < *rounds; round++ {
		select {
		case <-ended:
			return nil
		default:
		}
		result := counts{Calls: map[string]int{}, Codes: map[string]int{}}
		for call := 0; call < *calls; call++ {
			instance, err := createFeed(ctx, conn)
			result.Codes[status.Code(err).String()]++
			if err != nil {
				result.LastError = err.Error()
			} else {
				result.Calls[instance]++
			}
		}
		if err := say(result); err != nil {
			return err
		}
	}
	return nil
}

// counts are the calls of a round.
type counts struct {
	Calls     map[string]int `json:"calls"` // that were answered, by instance
	Codes     map[string]int `json:"codes"`
	LastError string         `json:"last_error"`
}

// createFeed writes a feed and returns the instance that answered.
func createFeed(ctx context.Context, conn *grpc.ClientConn) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var header metadata.MD
	var answer []byte
	record := []byte{0x08, 1, 0x10, 7, 0x1a, 1, 'x'} // id = 1, user_id = 7, content = "x"
	err := conn.Invoke(ctx, "/feed.Feed/CreateFeed", record, &answer, grpc.ForceCodec(mixed{}), grpc.Header(&header))
	instance := ""
	if ids := header.Get("x-msa-instance"); len(ids) > 0 {
		instance = ids[0]
	}
	return instance, err
}
