package main

import (
	"fmt"

	"google.golang.org/protobuf/proto"
)

// mixed is the usual codec, and passes bytes on as messages that are encoded already.
type mixed struct{}

func (mixed) Name() string { return "proto" }

func (mixed) Marshal(value any) ([]byte, error) {
	switch message := value.(type) {
	case []byte:
		return message, nil
	case proto.Message:
		return proto.Marshal(message)
	}
	return nil, fmt.Errorf("not a message: %T", value)
}

func (mixed) Unmarshal(data []byte, value any) error {
	switch message := value.(type) {
	case *[]byte:
		*message = append([]byte(nil), data...)
		return nil
	case proto.Message:
		return proto.Unmarshal(data, message)
	}
	return fmt.Errorf("not a message: %T", value)
}
