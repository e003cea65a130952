// Images that are none of the classes, and no more than a promised share of those that are: familiar.py, number by number.

const ODDS = 0.5; // weight of the log-odds beside the distance
const LEAST_DOUBT = 1e-6; // a smaller one is rounding
const MOST = 10000; // images of a familiarity
export const NONE = "none of these";

const place = (images, share) => Math.floor(Math.round((images + 1) * share * 1e9) / 1e9);

// Whether so many images are enough for a share.
export const possible = ({ sure }, share) => place(sure.length, share) > 0;

// The familiarity of a model with so many classes. Raises an Error for anything else.
export function checked(familiarity, count) {
  const { sure, distances, known, source, grouped = false } = familiarity ?? {};
  const within = (values, most) => Array.isArray(values) && values.length > 0 && values.length <= MOST &&
    values.every((each) => typeof each === "number" && each >= 0 && each <= most);
  if (!within(sure, 1) || !within(distances, 2) || sure.length !== distances.length ||
      !Number.isInteger(known) || known < 1 || known > count || !["folds", "held out"].includes(source))
    throw Error("familiarity.json is damaged: copy the folder again, or export it again.");
  return { sure, distances, known, source, grouped: Boolean(grouped) };
}

function odds(sure) {
  const doubt = Math.max(1 - sure, LEAST_DOUBT);
  return Math.log(Math.max(1 - doubt, LEAST_DOUBT) / doubt);
}

// A function that gives a value in standard deviations from the mean of others.
function standardiser(own) {
  const mean = own.reduce((sum, each) => sum + each, 0) / own.length;
  const square = own.reduce((sum, each) => sum + (each - mean) ** 2, 0) / own.length;
  return (value) => (value - mean) / Math.max(Math.sqrt(square), 1e-9);
}

// A function that says how strange an image is, by its largest probability and its distance from the nearest class mean.
export function strangeness({ sure, distances }) {
  const far = standardiser(distances), certain = standardiser(sure.map(odds));
  return (probability, distance) => far(distance) - ODDS * certain(odds(probability));
}

// The strangeness above which an image is none of the classes.
export function limit(familiarity, share) {
  const { sure, distances } = familiarity, strange = strangeness(familiarity);
  const own = sure.map((probability, i) => strange(probability, distances[i])).sort((a, b) => a - b);
  return own[own.length - place(own.length, share)];
}

// A function that says of rows {probability, place} of an image, the most probable first, and of its distance whether it is
// none of the classes; of those that were added by name, which come last, it always is one.
export function judge(familiarity, share) {
  const strange = strangeness(familiarity), most = limit(familiarity, share);
  return (rows, distance) => rows[0].place < familiarity.known && strange(rows[0].probability, distance) > most;
}
