// The node's secret, which every request of the page shows: out of the link that `helio dashboard` prints, kept as long as the tab is open.

const KEPT_AS = "helio-secret";

/** Takes the secret out of the address, where it would be seen, kept in the history and passed on with the link. */
function take() {
  const found = /^#secret=([0-9a-f]{64})$/.exec(location.hash);
  if (!found) return;
  sessionStorage.setItem(KEPT_AS, found[1]);
  history.replaceState(null, "", "#/");
}

take();
// The link may be opened in a tab that shows the page already.
addEventListener("hashchange", take);

/** The secret, or nothing. */
export const secret = () => sessionStorage.getItem(KEPT_AS);
