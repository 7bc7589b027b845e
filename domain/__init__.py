"""What a study is: its data, workflow, permissions, requests, log and mail. Knows no Dagster, Docker or cloud."""
