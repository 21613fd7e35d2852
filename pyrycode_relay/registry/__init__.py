"""Server-ids, their binaries and phones, and the queues between them: state without sockets."""
