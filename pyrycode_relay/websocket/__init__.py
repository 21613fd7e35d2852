"""One WebSocket connection: only this package uses the internals of Autobahn and of transports."""
