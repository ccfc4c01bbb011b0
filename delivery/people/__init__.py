"""Who may have what: users, passwords, tokens, roles, licences and quotas."""
