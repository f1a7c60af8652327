"""The only code that opens sockets to gateways and hosts of images."""
