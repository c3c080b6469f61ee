"""Comparing methods: protocols, scores, costs, tables and the report."""
