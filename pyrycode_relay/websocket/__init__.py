"""One WebSocket connection: the only package that knows Autobahn and Twisted's transports."""
