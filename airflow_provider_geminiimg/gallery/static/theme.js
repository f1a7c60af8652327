/* The light and the dark theme. */

/* The theme follows Airflow's setting, or the browser's outside of Airflow. */
export function followTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let outer = null;
  try {
    if (parent !== window) outer = parent.document.documentElement;
  } catch {
    // embedded elsewhere: the browser's setting applies
  }
  const themed = () => outer?.classList.contains("dark") || outer?.classList.contains("light");
  const set = () => {
    const isDark = themed() ? outer.classList.contains("dark") : dark.matches;
    document.documentElement.className = isDark ? "dark" : "light";
  };
  if (outer) new MutationObserver(set).observe(outer, { attributeFilter: ["class"] });
  dark.addEventListener("change", set);
  set();
}
