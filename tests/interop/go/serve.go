package main

import (
	"context"
	"flag"
	"net"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

// serve is a feed server with grpc-go's defaults, registered by etcd's own client. It answers every rpc of feed
// with an empty message, says when connections begin and end, and ends with its standard input.
func serve(flags *flag.FlagSet, args []string) error {
	etcd := flags.String("etcd", "", "client address of etcd")
	target := flags.String("target", "", "what it registers below, without the last slash")
	withHealth := flags.Bool("health", true, "offer the health service")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	answer := func(_ any, stream grpc.ServerStream) error {
		if method, _ := grpc.MethodFromServerStream(stream); !strings.HasPrefix(method, "/feed.Feed/") {
			return status.Error(codes.Unimplemented, "no such service")
		}
		var asked []byte
		if err := stream.RecvMsg(&asked); err != nil {
			return err
		}
		return stream.SendMsg([]byte{})
	}
	server := grpc.NewServer(
		grpc.StatsHandler(connections{}),
		grpc.UnknownServiceHandler(answer),
		grpc.ForceServerCodec(mixed{}),
	)
	if *withHealth {
		grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	defer server.Stop()

	client, err := clientv3.New(clientv3.Config{Endpoints: []string{*etcd}, DialTimeout: 5 * time.Second})
	if err != nil {
		return err
	}
	defer client.Close()
	manager, err := endpoints.NewManager(client, *target)
	if err != nil {
		return err
	}
	addr := listener.Addr().String()
	if err := manager.AddEndpoint(ctx, *target+"/"+addr, endpoints.Endpoint{Addr: addr}); err != nil {
		return err
	}
	if err := say(map[string]string{"serving": addr}); err != nil {
		return err
	}
	stdin := make(chan struct{})
	go endOfInput(stdin)
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-stdin:
		return nil
	}
}

// connections says when connections begin and end.
type connections struct{}

func (connections) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (connections) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (connections) HandleRPC(context.Context, stats.RPCStats)                         {}
func (connections) HandleConn(_ context.Context, event stats.ConnStats) {
	switch event.(type) {
	case *stats.ConnBegin:
		_ = say(map[string]string{"connection": "begins"})
	case *stats.ConnEnd:
		_ = say(map[string]string{"connection": "ends"})
	}
}
