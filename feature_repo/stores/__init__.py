"""The Feast plugins (online store, offline store, compute engine) and the clients they stand on."""
