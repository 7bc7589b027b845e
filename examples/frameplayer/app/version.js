/* What the page shows at its foot, so that one sees which commit a study was built from. */
export default '1.0';
