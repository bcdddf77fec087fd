"""What plans and trials leave behind, and where: storage, records, plans, ledgers."""
