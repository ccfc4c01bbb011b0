"""The control protocol: `scistream.proto` and what protoc makes of it (`make proto`)."""
