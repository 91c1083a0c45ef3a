"""Records of members: what runs have shown of them, and whom later runs do without."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One new table."""
    op.create_table(
        "records",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("record", sa.Text(), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("quarantined", sa.Boolean(), nullable=False),
        sa.Column("cleared", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
