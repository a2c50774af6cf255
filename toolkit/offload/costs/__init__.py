"""What a layer costs on a machine, what a byte costs on a link, and what encodings change."""
