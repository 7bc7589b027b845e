"""Who may do what: codes, roles, and the checks that every act goes through."""
