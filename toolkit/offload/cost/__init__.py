"""What a layer costs on a machine and what a byte costs on a link."""
