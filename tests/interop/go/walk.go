package main

import (
	"context"
	"flag"
	"fmt"
	"sort"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// walk tries what a feed server offers to any client: health, reflection, and calls by what reflection tells.
func walk(flags *flag.FlagSet, args []string) error {
	addr := flags.String("addr", "", "address of a feed server")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	conn, err := grpc.NewClient(*addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	health, err := healths(ctx, conn)
	if err != nil {
		return err
	}
	services, file, err := reflected(ctx, conn, "feed.Feed")
	if err != nil {
		return err
	}
	feed := file.Services().ByName("Feed")
	calls := []string{}
	for _, call := range [][2]string{
		{"CreateFeed", `{"id": 1, "user_id": 7, "content": "one"}`},
		{"CreateFeed", `{"id": 2, "user_id": 7, "content": "two"}`},
		{"GetFeeds", `{"user_id": 7, "size": 1}`},
		{"GetFeeds", `{"user_id": 8, "size": 1}`},
		{"DeleteFeed", `{"user_id": 7, "id": 0}`},
	} {
		answer, err := invoke(ctx, conn, feed.Methods().ByName(protoreflect.Name(call[0])), call[1])
		if err != nil {
			answer = status.Code(err).String()
		}
		calls = append(calls, call[0]+" "+answer)
	}
	return say(map[string]any{"health": health, "services": services, "calls": calls})
}

// healths returns what a check and a watch say of each service.
func healths(ctx context.Context, conn *grpc.ClientConn) (map[string][2]string, error) {
	client := grpc_health_v1.NewHealthClient(conn)
	found := map[string][2]string{}
	for _, service := range []string{"", "feed.Feed", "topic.Topic"} {
		asked := &grpc_health_v1.HealthCheckRequest{Service: service}
		answer, err := client.Check(ctx, asked)
		check := answer.GetStatus().String()
		if err != nil {
			check = status.Code(err).String()
		}
		watch, err := watched(ctx, client, asked)
		if err != nil {
			return nil, fmt.Errorf("watch of %q: %w", service, err)
		}
		found[service] = [2]string{check, watch}
	}
	return found, nil
}

// watched returns the first message of a watch, and that it stays open after it.
func watched(ctx context.Context, client grpc_health_v1.HealthClient, asked *grpc_health_v1.HealthCheckRequest) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.Watch(ctx, asked)
	if err != nil {
		return "", err
	}
	first, err := stream.Recv()
	if err != nil {
		return "", err
	}
	ended := make(chan error, 1)
	go func() {
		_, err := stream.Recv()
		ended <- err
	}()
	select {
	case err := <-ended:
		return "", fmt.Errorf("more than one message at once: %v", err)
	case <-time.After(300 * time.Millisecond):
		return first.GetStatus().String(), nil
	}
}

// reflected returns the services that a server lists, and the file that describes one of them.
func reflected(ctx context.Context, conn *grpc.ClientConn, service string) ([]string, protoreflect.FileDescriptor, error) {
	stream, err := grpc_reflection_v1.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err != nil {
		return nil, nil, err
	}
	ask := func(request *grpc_reflection_v1.ServerReflectionRequest) (*grpc_reflection_v1.ServerReflectionResponse, error) {
		if err := stream.Send(request); err != nil {
			return nil, err
		}
		return stream.Recv()
	}
	list := &grpc_reflection_v1.ServerReflectionRequest_ListServices{ListServices: "*"}
	answer, err := ask(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: list})
	if err != nil {
		return nil, nil, err
	}
	names := []string{}
	for _, listed := range answer.GetListServicesResponse().GetService() {
		names = append(names, listed.GetName())
	}
	sort.Strings(names)
	symbol := &grpc_reflection_v1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: service}
	answer, err = ask(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: symbol})
	if err != nil {
		return nil, nil, err
	}
	encoded := answer.GetFileDescriptorResponse().GetFileDescriptorProto()
	if len(encoded) != 1 {
		return nil, nil, fmt.Errorf("%s is described by %d files: %v", service, len(encoded), answer)
	}
	described := &descriptorpb.FileDescriptorProto{}
	if err := proto.Unmarshal(encoded[0], described); err != nil {
		return nil, nil, err
	}
	file, err := protodesc.NewFile(described, nil)
	return names, file, err
}

// invoke makes a call; the request and the answer are JSON.
func invoke(ctx context.Context, conn *grpc.ClientConn, method protoreflect.MethodDescriptor, request string) (string, error) {
	asked, answer := dynamicpb.NewMessage(method.Input()), dynamicpb.NewMessage(method.Output())
	if err := (protojson.UnmarshalOptions{}).Unmarshal([]byte(request), asked); err != nil {
		return "", err
	}
	path := fmt.Sprintf("/%s/%s", method.Parent().FullName(), method.Name())
	if err := conn.Invoke(ctx, path, asked, answer); err != nil {
		return "", err
	}
	return protojson.MarshalOptions{UseProtoNames: true}.Format(answer), nil
}
