"""Who holds which server-id, and what waits for whom: state that knows no sockets."""
