"""Push wakes: the providers that reach a phone's device, and the service that asks them."""
