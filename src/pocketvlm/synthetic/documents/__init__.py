"""Printed matter: receipts, invoices, forms, tables, pages, screens, paragraphs, words."""
