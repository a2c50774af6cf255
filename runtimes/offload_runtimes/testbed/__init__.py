"""Two machines out of one: network namespaces, a shaped link between them, a slow device."""
