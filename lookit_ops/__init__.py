"""Operations: Dagster jobs, assets, sensors and schedules, the command line, and the adapters to the outside."""
